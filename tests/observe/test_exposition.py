"""The page as others read it: promtool finds nothing, the catalog is all of it, and vLLM's names are beside."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from baton.core.query import State
from baton.observe.catalog import FAMILIES
from baton.observe.metrics import Metrics
from baton.testing.clock import ManualClock
from observe.test_metrics import STATS, ended, iteration, moved


def some_metrics(**settings: bool) -> Metrics:
    metrics = Metrics("m", ManualClock(), **settings)  # type: ignore[arg-type]
    for event in (moved(None, State.WAITING), iteration(), moved(State.RUNNING, State.READY, "memory"), ended()):
        metrics(event)
    return metrics


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian's package prometheus has it)")
def test_promtool_finds_nothing() -> None:
    body, _ = some_metrics().render(STATS)
    ran = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, b"")


def test_all_of_the_catalog_is_on_the_page_and_nothing_else() -> None:
    body = some_metrics().render(STATS)[0].decode()
    kinds = dict(line.split()[2:] for line in body.splitlines() if line.startswith("# TYPE"))
    assert kinds == {family.name: family.kind.value for family in FAMILIES}
    assert all(family.help.endswith(".") for family in FAMILIES)


def test_the_page_is_as_it_was() -> None:
    """Others' dashboards and alerts read it: changes here belong in CHANGELOG.md."""
    kept = Path(__file__).with_name("page.txt")
    assert some_metrics(compat=True).render(STATS)[0].decode() == kept.read_text()


def test_plain_numbers_of_the_engine_are_told_by_name() -> None:
    numbers = STATS.numbers()
    assert numbers["kv_bytes_used"] == 1000 and numbers["last_iteration_age_seconds"] == 0.25
    assert not {"slots", "outcomes", "costs"} & set(numbers)


def test_vllms_names_stand_beside_ours_where_asked_for() -> None:
    assert "vllm:" not in some_metrics().render(STATS)[0].decode()
    body = some_metrics(compat=True).render(STATS)[0].decode()
    samples = [sample for family in text_string_to_metric_families(body) for sample in family.samples]
    values = {(sample.name, sample.labels.get("finished_reason")): sample.value for sample in samples}
    assert values[("vllm:num_requests_running", None)] == STATS.running + STATS.prefilling + STATS.ready
    assert values[("vllm:num_requests_waiting", None)] == STATS.waiting
    assert values[("vllm:kv_cache_usage_perc", None)] == 0.25
    assert values[("vllm:prompt_tokens_total", None)] == 12
    assert values[("vllm:request_success_total", "stop")] == 1 and values[("vllm:request_success_total", "abort")] == 0
    assert values[("vllm:num_preemptions_total", None)] == 1
    assert values[("vllm:e2e_request_latency_seconds_sum", None)] == 0.3
    assert values[("vllm:request_generation_tokens_count", None)] == 1
