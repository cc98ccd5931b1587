"""The page docs/metrics.md, from the catalog of metrics."""

from __future__ import annotations

from pathlib import Path

from baton.observe.catalog import FAMILIES
from baton.observe.family import SYMBOLS
from baton.observe.replica_catalog import BY_REPLICA, FOR_PROMPTS

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

_HEAD = """\
# Metrics

`GET /metrics` answers Prometheus' text format. Every number comes from the engine's events; none is estimated, and the
same numbers come of a trace (`--trace FILE`). All carry the label `model_name`. This page is made from
`src/baton/observe/catalog.py` by `scripts/docs`.

`--metrics-compat vllm` adds vLLM's names (`vllm:num_requests_running` and so on, `src/baton/observe/compat.py`) for
dashboards and autoscalers that read them. Alerts and recording rules are in `deploy/prometheus/`, a Grafana dashboard
in `deploy/grafana/`, an autoscaler by `baton_wanted_replicas` in `deploy/keda/`.

**Idle computation**: of all token slots that forwards computed, the share that no query needed. A slot is one token
position that went through the layers. `useful` is counted once for each token that a query needed; `empty_row` no query
in the row, `finished_row` its query was done, `padding` aligns a row with longer ones, `recomputed` was computed before
and forgotten.
"""

_EACH = """\
With `--replicas` the numbers above are those of all engines together. What an engine had counted when the page was last
asked for stays counted after it is gone. These are there besides, for each engine that is there now:"""


def text(_page: str) -> str:
    lines = [_HEAD, "## Symbols", "", "| symbol | |", "| --- | --- |"]
    lines += [f"| {symbol} | {meaning} |" for symbol, meaning in SYMBOLS.items()]
    lines += ["", "## All metrics", "", "| name | kind | label | | how |", "| --- | --- | --- | --- | --- |"]
    for family in FAMILIES:
        label = f"`{family.label}`" if family.label else ""
        lines.append(f"| `{family.name}` | {family.kind} | {label} | {family.help} | {family.formula} |")
    lines += ["", "## Of each engine", "", _EACH, "", "| name | kind | label | |", "| --- | --- | --- | --- |"]
    for family in (*BY_REPLICA.values(), FOR_PROMPTS):
        lines.append(f"| `{family.name}` | {family.kind} | `{family.label}` | {family.help} |")
    return "\n".join(lines) + "\n"
