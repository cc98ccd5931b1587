"""Every metric: its name, kind and labels, what it says, how it is made. `docs/metrics.md` is produced from this."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What Prometheus calls a metric's type."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """`name` as on the page, with `_total` for counters. `formula`: in the symbols of `docs/metrics.md`."""

    name: str
    kind: Kind
    help: str
    formula: str
    label: str = ""


def _gauges(*rows: tuple[str, str, str]) -> list[Family]:
    return [Family(f"baton_{name}", Kind.GAUGE, help, formula) for name, help, formula in rows]


def _counter(name: str, help: str, formula: str, label: str = "") -> Family:
    return Family(f"baton_{name}_total", Kind.COUNTER, help, formula, label)


def _histogram(name: str, help: str, formula: str, label: str = "") -> Family:
    return Family(f"baton_{name}", Kind.HISTOGRAM, help, formula, label)


FAMILIES: tuple[Family, ...] = (
    *_gauges(
        ("queries_running", "Queries that have a row of the batch.", "R"),
        ("queries_waiting", "Queries of which nothing was computed yet.", "W"),
        ("queries_prefilling", "Queries whose prompt is being computed apart from the batch.", "P"),
        ("queries_preempted", "Queries that were running and wait to run again.", "those set aside or forgotten"),
        ("batch_rows", "Rows of the running batch.", "B"),
        ("batch_columns", "Columns of the running batch.", "the longest row's tokens"),
        ("batch_rows_occupied", "Rows of the running batch that have a query.", "R, and finished rows that are held"),
        ("kv_bytes_used", "Bytes of keys and values that all rows take.", "by whole pages, as the budget counts"),
        ("kv_bytes_budget", "Bytes that all rows may take now.", "the setting, or less where memory is short"),
        ("pool_bytes_used", "Bytes of keys and values kept outside all rows.", "of queries set aside"),
        ("prefix_bytes_used", "Bytes of stored prefixes, which give way to those set aside.", ""),
        ("pool_bytes_budget", "Bytes that may be kept outside all rows now.", ""),
        ("engine_last_iteration_age_seconds", "Seconds since the engine's thread last came round.", "now - t"),
        ("idle_ratio", "Share of the last minute's token slots that no query needed.", "1 - useful / all, of 60 s"),
        ("wanted_replicas", "Replicas that the last minute's load would keep at most 80 % busy.", "max of the next, 1"),
    ),
    Family(
        "baton_wanted_replicas_by",
        Kind.GAUGE,
        "The same by what is short.",
        "rows: L S / (0.8 B_max); memory: L S K / (0.8 M)",
        "reason",
    ),
    _counter("queries", "Queries that left the engine.", "by how they ended", "outcome"),
    _counter("prompt_tokens", "Prompt tokens of admitted queries.", "sum of p"),
    _counter("generated_tokens", "Tokens drawn.", "sum of g"),
    _counter("prefix_cached_tokens", "Tokens not computed, because an earlier text began with them.", "sum"),
    _counter("recomputed_tokens", "Tokens computed again after they were forgotten.", "the slots of that kind"),
    _counter("token_slots", "Token positions that forwards computed.", "counted in each forward", "kind"),
    _counter("kv_columns", "Columns of keys and values that attention read.", "counted in each forward", "kind"),
    _counter("preemptions", "Running queries that lost their row.", "running to ready or waiting", "reason"),
    _counter("batch_resizes", "Changes of the batch's rows.", "B grew or shrank", "direction"),
    _counter("insertions", "Queries inserted into the running batch.", "ready to running"),
    _counter(
        "decode_stall_seconds",
        "Time that running rows waited for something else than their own step.",
        "iteration - step, while R > 0",
        "cause",
    ),
    _counter("admission_rejections", "Queries that were not admitted.", "by error code", "reason"),
    _histogram("time_to_first_token_seconds", "Arrival to first token.", "t_1 - t_0"),
    _histogram("inter_token_seconds", "Between two tokens of a query.", "t_i - t_(i-1)"),
    _histogram("time_per_output_token_seconds", "A query's mean time between tokens.", "(t_g - t_1) / (g - 1)"),
    _histogram("end_to_end_seconds", "Arrival to end.", "t_end - t_0"),
    _histogram("queue_seconds", "Time that a query spent waiting or ready.", "sum over its stays"),
    _histogram("prefill_seconds", "Time that a query spent prefilling.", "sum over its stays"),
    _histogram("decode_seconds", "Time that a query spent in the batch.", "sum over its stays"),
    _histogram("iteration_seconds", "One turn of the engine.", "by what it computed", "kind"),
    _histogram("prompt_tokens", "Prompt tokens of a query.", "p"),
    _histogram("generated_tokens", "Tokens that a query drew.", "g"),
    _histogram("batch_occupancy", "Share of rows that have a query, of each iteration.", "R / B"),
)

SYMBOLS: dict[str, str] = {
    "p, g": "a query's prompt tokens and generated tokens",
    "t_0, t_1 ... t_g, t_end": "when it arrived, when each of its tokens was drawn, when it ended",
    "R, W, P": "queries that run, wait, prefill",
    "B, B_max": "rows of the batch now, and the most it may have",
    "useful, all": "token slots that a query needed, once per token; all that forwards computed",
    "L": "queries a second that arrived in the last minute, refused ones too, and those that wait over 60 s",
    "S": "mean seconds that a query which ended in the last minute spent prefilling and in the batch",
    "K": "mean bytes of keys and values of a query in a row, over the last minute",
    "M": "the budget of keys and values in bytes",
}
