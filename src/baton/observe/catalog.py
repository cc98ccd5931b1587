"""Every metric in one table, from which the metrics page, `docs/metrics.md` and the Grafana dashboard are made."""

from __future__ import annotations

from collections.abc import Mapping

from baton.observe.family import Family, Kind, Over, Source


def _gauge(
    name: str, help: str, formula: str, source: Source, panel: str = "", legend: str = "", over: Over = Over.SUM
) -> Family:
    return Family(f"baton_{name}", Kind.GAUGE, help, formula, "", source, panel, legend, over)


def _counter(
    name: str, help: str, formula: str, source: Source, panel: str = "", legend: str = "", label: str = ""
) -> Family:
    return Family(f"baton_{name}_total", Kind.COUNTER, help, formula, label, source, panel, legend)


def _histogram(name: str, help: str, formula: str, source: Source, panel: str = "", label: str = "") -> Family:
    return Family(f"baton_{name}", Kind.HISTOGRAM, help, formula, label, source, panel)


# Panels of the dashboard.
QUERIES, TOKENS, ROWS = "Queries", "Tokens a second", "Rows of the batch"
MEMORY = "Keys and values"
ENDS = "Ends and refusals a second"
CHANGES = "Rows that change: insertions, preemptions, resizes a second"
STALLS = "Running rows waited, share of the time, by cause"
REPLICAS = "Replicas wanted, by what is short"

FAMILIES: tuple[Family, ...] = (
    _gauge(
        "queries_running",
        "Queries that have a row of the batch.",
        "R",
        lambda now: now.stats.running,
        QUERIES,
        "running",
    ),
    _gauge(
        "queries_waiting",
        "Queries of which nothing was computed yet.",
        "W",
        lambda now: now.stats.waiting,
        QUERIES,
        "waiting",
    ),
    _gauge(
        "queries_prefilling",
        "Queries whose prompt is being computed apart from the batch.",
        "P",
        lambda now: now.stats.prefilling,
        QUERIES,
        "prefilling",
    ),
    _gauge(
        "queries_preempted",
        "Queries that were running and wait to run again.",
        "queries that were swapped out or forgotten",
        lambda now: now.stats.preempted,
        QUERIES,
        "preempted",
    ),
    _gauge("batch_rows", "Rows of the running batch.", "B", lambda now: now.stats.rows, ROWS, "rows"),
    _gauge(
        "batch_columns",
        "Columns of the running batch.",
        "the longest row's tokens",
        lambda now: now.stats.columns,
        over=Over.MOST,
    ),
    _gauge(
        "batch_rows_occupied",
        "Rows of the running batch that have a query.",
        "R, and finished rows that are held",
        lambda now: now.stats.rows_occupied,
        ROWS,
        "with a query",
    ),
    _gauge(
        "kv_bytes_used",
        "Bytes of keys and values that all rows take.",
        "by whole pages, as the budget counts",
        lambda now: now.stats.kv_bytes_used,
        MEMORY,
        "in rows",
    ),
    _gauge(
        "kv_bytes_budget",
        "Bytes that all rows may take now.",
        "the setting, or less if memory is short",
        lambda now: now.stats.kv_bytes_budget,
        MEMORY,
        "budget",
    ),
    _gauge(
        "swap_bytes_used",
        "Bytes of keys and values kept outside all rows.",
        "of queries swapped out",
        lambda now: now.stats.swap_bytes_used,
        MEMORY,
        "swapped out",
    ),
    _gauge(
        "prefix_bytes_used",
        "Bytes of stored prefixes, which make room for swapped-out queries.",
        "",
        lambda now: now.stats.prefix_bytes_used,
        MEMORY,
        "stored prefixes",
    ),
    _gauge(
        "swap_bytes_budget", "Bytes that may be kept outside all rows now.", "", lambda now: now.stats.swap_bytes_budget
    ),
    _gauge(
        "engine_last_iteration_age_seconds",
        "Seconds since the engine's thread last came round.",
        "now - t",
        lambda now: now.stats.last_iteration_age_seconds,
        over=Over.MOST,
    ),
    _gauge(
        "idle_ratio",
        "Share of the last minute's token slots that no query needed.",
        "1 - useful / all, of 60 s",
        lambda now: now.counted.last_minute.idle_ratio(now.time),
        over=Over.MEAN,
    ),
    _gauge(
        "wanted_replicas",
        "Replicas that the last minute's load would keep at most 80 % busy.",
        "max of the next, 1",
        lambda now: now.wanted.replicas,
    ),
    *(
        _gauge(f"pool_bytes_{what}", f"The old name of baton_swap_bytes_{what}, for one release.", "", source)
        for what, source in (
            ("used", lambda now: now.stats.swap_bytes_used),
            ("budget", lambda now: now.stats.swap_bytes_budget),
        )
    ),
    Family(
        "baton_wanted_replicas_by",
        Kind.GAUGE,
        "The same by what is short.",
        "rows: L S / (0.8 B_max); memory: L S K / (0.8 M)",
        "reason",
        lambda now: now.wanted._asdict(),
        REPLICAS,
        "{{reason}}",
    ),
    _counter(
        "queries",
        "Queries that left the engine.",
        "by how they ended",
        lambda now: now.counted.outcomes.by_label,
        ENDS,
        "{{outcome}}",
        label="outcome",
    ),
    _counter(
        "prompt_tokens",
        "Prompt tokens of admitted queries.",
        "sum of p",
        lambda now: now.counted.tokens.by_label["prompt"],
        TOKENS,
        "prompt",
    ),
    _counter(
        "generated_tokens",
        "Tokens drawn.",
        "sum of g",
        lambda now: now.counted.tokens.by_label["generated"],
        TOKENS,
        "generated",
    ),
    _counter(
        "prefix_cached_tokens",
        "Tokens not computed, because an earlier text began with them.",
        "sum",
        lambda now: now.stats.prefix_cached_tokens,
        TOKENS,
        "prompt, from a stored prefix",
    ),
    _counter(
        "recomputed_tokens",
        "Tokens computed again after they were forgotten.",
        "the slots of that kind",
        lambda now: now.counted.slots.by_label["recomputed"],
    ),
    _counter(
        "token_slots",
        "Token positions that forwards computed.",
        "counted in each forward",
        lambda now: now.counted.slots.by_label,
        label="kind",
    ),
    _counter(
        "kv_columns",
        "Columns of keys and values that attention read.",
        "counted in each forward",
        lambda now: now.counted.columns.by_label,
        label="kind",
    ),
    _counter(
        "preemptions",
        "Running queries that lost their row.",
        "running to ready or waiting",
        lambda now: now.counted.preemptions.by_label,
        CHANGES,
        "preempted: {{reason}}",
        label="reason",
    ),
    _counter(
        "batch_resizes",
        "Changes of the batch's rows.",
        "B grew or shrank",
        lambda now: now.counted.resizes.by_label,
        CHANGES,
        "resized: {{direction}}",
        label="direction",
    ),
    _counter(
        "insertions",
        "Queries inserted into the running batch.",
        "ready to running",
        lambda now: now.counted.insertions,
        CHANGES,
        "insertions",
    ),
    _counter(
        "decode_stall_seconds",
        "Time that running rows waited for something else than their own step.",
        "iteration - step, while R > 0",
        lambda now: now.counted.stalls.by_label,
        STALLS,
        "{{cause}}",
        label="cause",
    ),
    _counter(
        "admission_rejections",
        "Queries that were not admitted.",
        "by error code",
        lambda now: now.counted.rejections.by_label,
        ENDS,
        "refused: {{reason}}",
        label="reason",
    ),
    _counter(
        "fields_ignored",
        "Fields of requests that were taken without effect.",
        "by name, of a list",
        lambda now: now.counted.ignored.by_label,
        label="name",
    ),
    _histogram(
        "time_to_first_token_seconds",
        "Arrival to first token.",
        "t_1 - t_0",
        lambda now: now.counted.first_token,
        "Time to first token",
    ),
    _histogram(
        "inter_token_seconds",
        "Between two tokens of a query.",
        "t_i - t_(i-1)",
        lambda now: now.counted.inter_token,
        "Between tokens",
    ),
    _histogram(
        "time_per_output_token_seconds",
        "A query's mean time between tokens.",
        "(t_g - t_1) / (g - 1)",
        lambda now: now.counted.per_token,
    ),
    _histogram(
        "end_to_end_seconds", "Arrival to end.", "t_end - t_0", lambda now: now.counted.end_to_end, "End to end"
    ),
    _histogram(
        "queue_seconds",
        "Time that a query spent waiting or ready.",
        "sum over its stays",
        lambda now: now.counted.queued,
    ),
    _histogram(
        "prefill_seconds",
        "Time that a query spent prefilling.",
        "sum over its stays",
        lambda now: now.counted.prefilled,
    ),
    _histogram(
        "decode_seconds", "Time that a query spent in the batch.", "sum over its stays", lambda now: now.counted.decoded
    ),
    _histogram(
        "iteration_seconds",
        "One turn of the engine.",
        "by what it computed",
        lambda now: now.counted.iterations,
        label="kind",
    ),
    _histogram("prompt_tokens", "Prompt tokens of a query.", "p", lambda now: now.counted.prompt_tokens),
    _histogram("generated_tokens", "Tokens that a query drew.", "g", lambda now: now.counted.generated_tokens),
    _histogram(
        "batch_occupancy",
        "Share of rows that have a query, of each iteration.",
        "R / B",
        lambda now: now.counted.occupancy,
    ),
)

BY_REPLICA: Mapping[str, Family] = {
    known.name: Family(
        known.name.replace("baton_", "baton_replica_", 1), known.kind, known.help, "of one engine", "replica"
    )
    for known in FAMILIES
    if known.name
    in (
        *("baton_queries_running", "baton_queries_waiting", "baton_batch_rows_occupied", "baton_kv_bytes_used"),
        *("baton_prompt_tokens_total", "baton_generated_tokens_total", "baton_engine_last_iteration_age_seconds"),
    )
}
"""What a front with several engines (`--replicas`) shows of each, by the name of the family of all together."""

FOR_PROMPTS = Family(
    "baton_replica_for_prompts",
    Kind.GAUGE,
    "Whether an engine computes prompts for the others (--prefill-replicas).",
    "1 or 0",
    "replica",
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
