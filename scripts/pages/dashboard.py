"""The Grafana dashboard deploy/grafana/baton.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "deploy" / "grafana" / "baton.json"
WIDTH, HEIGHT = 8, 7
OURS = '{model_name=~"$model"}'

# Title, unit, and each line's legend and query; three panels to a row.
PANELS: list[tuple[str, str, dict[str, str]]] = [
    (
        "Queries",
        "short",
        {
            "running": f"sum(baton_queries_running{OURS})",
            "prefilling": f"sum(baton_queries_prefilling{OURS})",
            "waiting": f"sum(baton_queries_waiting{OURS})",
            "preempted": f"sum(baton_queries_preempted{OURS})",
        },
    ),
    (
        "Tokens a second",
        "short",
        {
            "generated": f"sum(rate(baton_generated_tokens_total{OURS}[1m]))",
            "prompt": f"sum(rate(baton_prompt_tokens_total{OURS}[1m]))",
            "prompt, from a stored prefix": f"sum(rate(baton_prefix_cached_tokens_total{OURS}[1m]))",
        },
    ),
    (
        "Idle computation by kind",
        "percentunit",
        {
            "{{kind}}": f'sum by (kind) (rate(baton_token_slots_total{{model_name=~"$model", kind!="useful"}}[1m]))'
            f" / scalar(sum(rate(baton_token_slots_total{OURS}[1m])))"
        },
    ),
    *(
        (
            title,
            "s",
            {f"p{q}": f"histogram_quantile(0.{q}, sum by (le) (rate({name}_bucket{OURS}[1m])))" for q in (50, 95)},
        )
        for title, name in (
            ("Time to first token", "baton_time_to_first_token_seconds"),
            ("Between tokens", "baton_inter_token_seconds"),
            ("End to end", "baton_end_to_end_seconds"),
        )
    ),
    (
        "Rows of the batch",
        "short",
        {"rows": f"sum(baton_batch_rows{OURS})", "with a query": f"sum(baton_batch_rows_occupied{OURS})"},
    ),
    (
        "Keys and values",
        "bytes",
        {
            "in rows": f"sum(baton_kv_bytes_used{OURS})",
            "budget": f"sum(baton_kv_bytes_budget{OURS})",
            "set aside": f"sum(baton_pool_bytes_used{OURS})",
            "stored prefixes": f"sum(baton_prefix_bytes_used{OURS})",
        },
    ),
    (
        "Running rows waited, share of the time, by cause",
        "percentunit",
        {"{{cause}}": f"sum by (cause) (rate(baton_decode_stall_seconds_total{OURS}[1m]))"},
    ),
    (
        "An iteration",
        "s",
        {
            "{{kind}}, mean": f"sum by (kind) (rate(baton_iteration_seconds_sum{OURS}[1m]))"
            f" / sum by (kind) (rate(baton_iteration_seconds_count{OURS}[1m]))"
        },
    ),
    (
        "Ends and refusals a second",
        "short",
        {
            "{{outcome}}": f"sum by (outcome) (rate(baton_queries_total{OURS}[1m]))",
            "refused: {{reason}}": f"sum by (reason) (rate(baton_admission_rejections_total{OURS}[1m]))",
        },
    ),
    (
        "Rows that change: insertions, preemptions, resizes a second",
        "short",
        {
            "insertions": f"sum(rate(baton_insertions_total{OURS}[1m]))",
            "preempted: {{reason}}": f"sum by (reason) (rate(baton_preemptions_total{OURS}[1m]))",
            "resized: {{direction}}": f"sum by (direction) (rate(baton_batch_resizes_total{OURS}[1m]))",
        },
    ),
    (
        "Replicas wanted, by what is short",
        "short",
        {"{{reason}}": f"sum by (reason) (baton_wanted_replicas_by{OURS})"},
    ),
]


def dashboard() -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    model = {
        "name": "model",
        "type": "query",
        "label": "model",
        "datasource": source,
        "includeAll": True,
        "multi": True,
    }
    panels = [_panel(number, *panel) for number, panel in enumerate(PANELS)]
    return {
        "title": "baton",
        "uid": "baton",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "source"},
                {
                    **model,
                    "query": "label_values(baton_batch_rows, model_name)",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def text(_page: str) -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


def _panel(number: int, title: str, unit: str, lines: dict[str, str]) -> dict[str, Any]:
    place = {"x": number % 3 * WIDTH, "y": number // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT}
    targets = [
        {"refId": chr(ord("A") + at), "expr": query, "legendFormat": legend}
        for at, (legend, query) in enumerate(lines.items())
    ]
    return {
        "id": number + 1,
        "title": title,
        "type": "timeseries",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }
