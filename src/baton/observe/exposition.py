"""The metrics page: families of the catalog with their values, as prometheus_client writes them.

Families are built by hand, since its own Counter and Histogram cannot stand in one registry under the names
`baton_prompt_tokens_total` and `baton_prompt_tokens`, both of them public names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from baton.observe.counters import Histogram
from baton.observe.family import Family, Kind, Values


def page(model_name: str, families: Iterable[tuple[Family, Values]]) -> tuple[bytes, str]:
    """Returns the page's bytes and its content type."""
    registry = CollectorRegistry()
    registry.register(_Made([_metric(model_name, family, values) for family, values in families]))
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


def _metric(model_name: str, family: Family, values: Values) -> Metric:
    labels = ["model_name", family.label] if family.label else ["model_name"]
    named = [([model_name, value] if family.label else [model_name], sample) for value, sample in values.items()]
    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(family.name, family.help, labels=labels)
        for label_values, sample in named:
            assert isinstance(sample, Histogram)
            histogram.add_metric(label_values, sample.buckets(), sample.sum)
        return histogram
    plain = GaugeMetricFamily if family.kind is Kind.GAUGE else CounterMetricFamily
    metric = plain(family.name.removesuffix("_total"), family.help, labels=labels)
    for label_values, sample in named:
        assert not isinstance(sample, Histogram)
        metric.add_metric(label_values, sample)
    return metric


class _Made(Collector):
    """Hands over families that are made already, in a registry's form."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families
