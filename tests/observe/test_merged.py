"""The metrics page of several engines: sums, a few numbers of each, and what engines counted that are gone."""

from __future__ import annotations

import json
from dataclasses import replace

from baton.cluster.totals import NOTHING
from baton.core.events import QueryRejected
from baton.observe.merged import MergedMetrics
from baton.observe.metrics import Metrics


def page(merged: MergedMetrics, own: Metrics, engines: dict[str, Metrics], names: list[str]) -> dict[str, float]:
    told = {
        name: json.loads(json.dumps(metrics.told(replace(NOTHING, running=2)))) for name, metrics in engines.items()
    }
    text = merged.render(own.told(NOTHING), told, names, replace(NOTHING, running=4), prefill=["b"])[0].decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_engines_are_summed_and_shown_one_by_one() -> None:
    own, engines = Metrics("m", lambda: 1.0), {"a": Metrics("m", lambda: 1.0), "b": Metrics("m", lambda: 1.0)}
    merged = MergedMetrics("m")
    own(QueryRejected(1.0, "queue_full"))
    engines["a"](QueryRejected(1.0, "queue_full"))
    for count, metrics in enumerate(engines.values(), 1):
        metrics.counted.generated_tokens.observe(7)
        metrics.counted.tokens.add("generated", 5 * count)
    now = page(merged, own, engines, ["a", "b"])
    assert now['baton_queries_running{model_name="m"}'] == 4
    assert now['baton_generated_tokens_total{model_name="m"}'] == 15
    assert now['baton_generated_tokens_sum{model_name="m"}'] == 14
    assert now['baton_admission_rejections_total{model_name="m",reason="queue_full"}'] == 2
    assert now['baton_replica_generated_tokens_total{model_name="m",replica="b"}'] == 10
    assert now['baton_wanted_replicas{model_name="m"}'] == 1
    assert [now[f'baton_replica_for_prompts{{model_name="m",replica="{name}"}}'] for name in "ab"] == [0, 1]
    # One that does not answer in time keeps its last numbers; one that is gone keeps what it counted.
    assert page(merged, own, {}, ["a", "b"]) == now
    later = page(merged, own, {"a": engines["a"]}, ["a"])
    assert later['baton_queries_running{model_name="m"}'] == 2
    assert later['baton_generated_tokens_total{model_name="m"}'] == 15
    assert later['baton_generated_tokens_sum{model_name="m"}'] == 14
    assert 'baton_replica_generated_tokens_total{model_name="m",replica="b"}' not in later
