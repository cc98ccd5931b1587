"""The Grafana dashboard deploy/grafana/baton.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from baton.observe import catalog
from baton.observe.catalog import FAMILIES
from baton.observe.family import Family, Kind

PAGE = Path(__file__).parents[2] / "deploy" / "grafana" / "baton.json"
WIDTH, HEIGHT = 8, 7
OURS = '{model_name=~"$model"}'

Lines = dict[str, str]


def _lines(title: str) -> Lines:
    """By legend, the queries of the metrics that this panel shows."""
    lines: Lines = {}
    for family in FAMILIES:
        if family.panel == title:
            lines |= _queries(family)
    return lines


def _queries(family: Family) -> Lines:
    by = f" by ({family.label})" if family.label else ""
    if family.kind is Kind.HISTOGRAM:
        rate = f"sum by (le) (rate({family.name}_bucket{OURS}[1m]))"
        return {f"p{q}": f"histogram_quantile(0.{q}, {rate})" for q in (50, 95)}
    value = f"{family.name}{OURS}"
    value = f"rate({value}[1m])" if family.kind is Kind.COUNTER else value
    return {family.legend: f"sum{by} ({value})" if by else f"sum({value})"}


# Title, unit, and each line's legend and query; three panels to a row.
PANELS: list[tuple[str, str, Lines]] = [
    (catalog.QUERIES, "short", _lines(catalog.QUERIES)),
    (catalog.TOKENS, "short", _lines(catalog.TOKENS)),
    (
        "Idle computation by kind",
        "percentunit",
        {
            "{{kind}}": f'sum by (kind) (rate(baton_token_slots_total{{model_name=~"$model", kind!="useful"}}[1m]))'
            f" / scalar(sum(rate(baton_token_slots_total{OURS}[1m])))"
        },
    ),
    *((title, "s", _lines(title)) for title in ("Time to first token", "Between tokens", "End to end")),
    (catalog.ROWS, "short", _lines(catalog.ROWS)),
    (catalog.MEMORY, "bytes", _lines(catalog.MEMORY)),
    (catalog.STALLS, "percentunit", _lines(catalog.STALLS)),
    (
        "An iteration",
        "s",
        {
            "{{kind}}, mean": f"sum by (kind) (rate(baton_iteration_seconds_sum{OURS}[1m]))"
            f" / sum by (kind) (rate(baton_iteration_seconds_count{OURS}[1m]))"
        },
    ),
    (catalog.ENDS, "short", _lines(catalog.ENDS)),
    (catalog.CHANGES, "short", _lines(catalog.CHANGES)),
    (catalog.REPLICAS, "short", _lines(catalog.REPLICAS)),
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
