"""What a front shows of each of its engines, beside the sums of all."""

from __future__ import annotations

from collections.abc import Mapping

from baton.observe.catalog import FAMILIES
from baton.observe.family import Family, Kind

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
