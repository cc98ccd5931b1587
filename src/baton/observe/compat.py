"""vLLM's names for what baton counts (`--metrics-compat vllm`), so that its dashboards and autoscalers read both.

The names are from vLLM's documentation, "Production Metrics". Metrics that baton does not have are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from baton.engine.client import Stats
from baton.observe.family import Family, Kind, Values

_HISTOGRAMS = {
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "inter_token_latency_seconds": "inter_token_seconds",
    "request_time_per_output_token_seconds": "time_per_output_token_seconds",
    "e2e_request_latency_seconds": "end_to_end_seconds",
    "request_queue_time_seconds": "queue_seconds",
    "request_prefill_time_seconds": "prefill_seconds",
    "request_decode_time_seconds": "decode_seconds",
    "request_prompt_tokens": "prompt_tokens",
    "request_generation_tokens": "generated_tokens",
}
_COUNTERS = {
    "prompt_tokens_total": "prompt_tokens_total",
    "generation_tokens_total": "generated_tokens_total",
    "prefix_cache_queries_total": "prompt_tokens_total",
    "prefix_cache_hits_total": "prefix_cached_tokens_total",
}
_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort", "expired": "abort", "error": "error"}


def vllm(stats: Stats, ours: Mapping[str, Values], reasons: Mapping[str, float]) -> Iterator[tuple[Family, Values]]:
    """`ours`: values by baton's names. `reasons`: how many queries ended, by finish reason."""
    live = stats.running + stats.prefilling + stats.ready
    used = stats.kv_bytes_used / stats.kv_bytes_budget if stats.kv_bytes_budget else 0.0
    gauges = {"num_requests_running": live, "num_requests_waiting": stats.waiting, "kv_cache_usage_perc": used}
    for name, value in gauges.items():
        yield _family(name, Kind.GAUGE), {"": float(value)}
    for name, own in _COUNTERS.items():
        yield _family(name, Kind.COUNTER), ours[f"baton_{own}"]
    lost = sum(value for value in ours["baton_preemptions_total"].values() if isinstance(value, float))
    yield _family("num_preemptions_total", Kind.COUNTER), {"": lost}
    ended: dict[str, float] = dict.fromkeys(_REASONS.values(), 0.0)
    for reason, count in reasons.items():
        ended[_REASONS.get(reason, reason)] = ended.get(_REASONS.get(reason, reason), 0.0) + count
    yield _family("request_success_total", Kind.COUNTER, "finished_reason"), ended
    for name, own in _HISTOGRAMS.items():
        yield _family(name, Kind.HISTOGRAM), ours[f"baton_{own}"]


def _family(name: str, kind: Kind, label: str = "") -> Family:
    return Family(f"vllm:{name}", kind, "As vLLM names it; see baton's own.", "", label)
