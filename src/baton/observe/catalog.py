"""Every metric in one table, from which the metrics page, `docs/metrics.md` and the Grafana dashboard are made."""

from __future__ import annotations

from baton.observe.family import Family, Kind, Over, counter, gauge, histogram

# Panels of the dashboard.
QUERIES, TOKENS, ROWS = "Queries", "Tokens a second", "Rows of the batch"
MEMORY = "Keys and values"
ENDS = "Ends and refusals a second"
CHANGES = "Rows that change: insertions, preemptions, resizes a second"
STALLS = "Running rows waited, share of the time, by cause"
REPLICAS = "Replicas wanted, by what is short"

FAMILIES: tuple[Family, ...] = (
    gauge(
        "queries_running",
        "Queries that have a row of the batch.",
        "R",
        lambda now: now.stats.running,
        QUERIES,
        "running",
    ),
    gauge(
        "queries_waiting",
        "Queries of which nothing was computed yet.",
        "W",
        lambda now: now.stats.waiting,
        QUERIES,
        "waiting",
    ),
    gauge(
        "queries_prefilling",
        "Queries whose prompt is being computed apart from the batch.",
        "P",
        lambda now: now.stats.prefilling,
        QUERIES,
        "prefilling",
    ),
    gauge(
        "queries_preempted",
        "Queries that were running and wait to run again.",
        "queries that were swapped out or forgotten",
        lambda now: now.stats.preempted,
        QUERIES,
        "preempted",
    ),
    gauge("batch_rows", "Rows of the running batch.", "B", lambda now: now.stats.rows, ROWS, "rows"),
    gauge(
        "batch_columns",
        "Columns of the running batch.",
        "the longest row's tokens",
        lambda now: now.stats.columns,
        over=Over.MOST,
    ),
    gauge(
        "batch_rows_occupied",
        "Rows of the running batch that have a query.",
        "R, and finished rows that are held",
        lambda now: now.stats.rows_occupied,
        ROWS,
        "with a query",
    ),
    gauge(
        "kv_bytes_used",
        "Bytes of keys and values that all rows take.",
        "by whole pages, as the budget counts",
        lambda now: now.stats.kv_bytes_used,
        MEMORY,
        "in rows",
    ),
    gauge(
        "kv_bytes_budget",
        "Bytes that all rows may take now.",
        "the setting, or less if memory is short",
        lambda now: now.stats.kv_bytes_budget,
        MEMORY,
        "budget",
    ),
    gauge(
        "swap_bytes_used",
        "Bytes of keys and values kept outside all rows.",
        "of queries swapped out",
        lambda now: now.stats.swap_bytes_used,
        MEMORY,
        "swapped out",
    ),
    gauge(
        "prefix_bytes_used",
        "Bytes of stored prefixes, which make room for swapped-out queries.",
        "",
        lambda now: now.stats.prefix_bytes_used,
        MEMORY,
        "stored prefixes",
    ),
    gauge(
        "swap_bytes_budget", "Bytes that may be kept outside all rows now.", "", lambda now: now.stats.swap_bytes_budget
    ),
    gauge(
        "engine_last_iteration_age_seconds",
        "Seconds since the engine's thread last came round.",
        "now - t",
        lambda now: now.stats.last_iteration_age_seconds,
        over=Over.MOST,
    ),
    gauge(
        "idle_ratio",
        "Share of the last minute's token slots that no query needed.",
        "1 - useful / all, of 60 s",
        lambda now: now.counted.last_minute.idle_ratio(now.time),
        over=Over.MEAN,
    ),
    gauge(
        "wanted_replicas",
        "Replicas that the last minute's load would keep at most 80 % busy.",
        "max of the next, 1",
        lambda now: now.wanted.replicas,
    ),
    *(
        gauge(f"pool_bytes_{what}", f"The old name of baton_swap_bytes_{what}, for one release.", "", source)
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
    counter(
        "queries",
        "Queries that left the engine.",
        "by how they ended",
        lambda now: now.counted.outcomes.by_label,
        ENDS,
        "{{outcome}}",
        label="outcome",
    ),
    counter(
        "prompt_tokens",
        "Prompt tokens of admitted queries.",
        "sum of p",
        lambda now: now.counted.tokens.by_label["prompt"],
        TOKENS,
        "prompt",
    ),
    counter(
        "generated_tokens",
        "Tokens drawn.",
        "sum of g",
        lambda now: now.counted.tokens.by_label["generated"],
        TOKENS,
        "generated",
    ),
    counter(
        "prefix_cached_tokens",
        "Tokens not computed, because an earlier text began with them.",
        "sum",
        lambda now: now.stats.prefix_cached_tokens,
        TOKENS,
        "prompt, from a stored prefix",
    ),
    counter(
        "recomputed_tokens",
        "Tokens computed again after they were forgotten.",
        "the slots of that kind",
        lambda now: now.counted.slots.by_label["recomputed"],
    ),
    counter(
        "token_slots",
        "Token positions that forwards computed.",
        "counted in each forward",
        lambda now: now.counted.slots.by_label,
        label="kind",
    ),
    counter(
        "kv_columns",
        "Columns of keys and values that attention read.",
        "counted in each forward",
        lambda now: now.counted.columns.by_label,
        label="kind",
    ),
    counter(
        "preemptions",
        "Running queries that lost their row.",
        "running to ready or waiting",
        lambda now: now.counted.preemptions.by_label,
        CHANGES,
        "preempted: {{reason}}",
        label="reason",
    ),
    counter(
        "batch_resizes",
        "Changes of the batch's rows.",
        "B grew or shrank",
        lambda now: now.counted.resizes.by_label,
        CHANGES,
        "resized: {{direction}}",
        label="direction",
    ),
    counter(
        "insertions",
        "Queries inserted into the running batch.",
        "ready to running",
        lambda now: now.counted.insertions,
        CHANGES,
        "insertions",
    ),
    counter(
        "decode_stall_seconds",
        "Time that running rows waited for something else than their own step.",
        "iteration - step, while R > 0",
        lambda now: now.counted.stalls.by_label,
        STALLS,
        "{{cause}}",
        label="cause",
    ),
    counter(
        "admission_rejections",
        "Queries that were not admitted.",
        "by error code",
        lambda now: now.counted.rejections.by_label,
        ENDS,
        "refused: {{reason}}",
        label="reason",
    ),
    counter(
        "fields_ignored",
        "Fields of requests that were taken without effect.",
        "by name, of a list",
        lambda now: now.counted.ignored.by_label,
        label="name",
    ),
    histogram(
        "time_to_first_token_seconds",
        "Arrival to first token.",
        "t_1 - t_0",
        lambda now: now.counted.first_token,
        "Time to first token",
    ),
    histogram(
        "inter_token_seconds",
        "Between two tokens of a query.",
        "t_i - t_(i-1)",
        lambda now: now.counted.inter_token,
        "Between tokens",
    ),
    histogram(
        "time_per_output_token_seconds",
        "A query's mean time between tokens.",
        "(t_g - t_1) / (g - 1)",
        lambda now: now.counted.per_token,
    ),
    histogram("end_to_end_seconds", "Arrival to end.", "t_end - t_0", lambda now: now.counted.end_to_end, "End to end"),
    histogram(
        "queue_seconds",
        "Time that a query spent waiting or ready.",
        "sum over its stays",
        lambda now: now.counted.queued,
    ),
    histogram(
        "prefill_seconds",
        "Time that a query spent prefilling.",
        "sum over its stays",
        lambda now: now.counted.prefilled,
    ),
    histogram(
        "decode_seconds", "Time that a query spent in the batch.", "sum over its stays", lambda now: now.counted.decoded
    ),
    histogram(
        "iteration_seconds",
        "One turn of the engine.",
        "by what it computed",
        lambda now: now.counted.iterations,
        label="kind",
    ),
    histogram("prompt_tokens", "Prompt tokens of a query.", "p", lambda now: now.counted.prompt_tokens),
    histogram("generated_tokens", "Tokens that a query drew.", "g", lambda now: now.counted.generated_tokens),
    histogram(
        "batch_occupancy",
        "Share of rows that have a query, of each iteration.",
        "R / B",
        lambda now: now.counted.occupancy,
    ),
)
