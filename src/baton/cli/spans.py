"""Whether spans of queries are exported, as OpenTelemetry's variables say. Without them nothing of it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.markup import escape

from baton import __version__
from baton.cli.show import errors

if TYPE_CHECKING:
    from baton.observe.spans import QuerySpans

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP = "http/protobuf"


def spans_of(model: str, environment: Mapping[str, str]) -> QuerySpans | None:
    """Returns a sink of events, or None. If spans are asked for and cannot be exported, one line says why."""
    endpoint = next((name for name in _ENDPOINTS if environment.get(name)), "")
    exporters = environment.get("OTEL_TRACES_EXPORTER", "")
    if not endpoint or exporters == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _HTTP)
    if protocol != _HTTP:
        _warn(f"OTLP's protocol here is {_HTTP} (port 4318), not {protocol}")
        return None
    try:
        from baton.observe.spans import export_spans
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        _warn("pip install 'baton-llm[otel]'")
        return None
    errors.print(f"  {'spans':<12}of queries go where {endpoint} says")
    return export_spans(model, __version__)


def _warn(why: str) -> None:
    errors.print(f"[yellow]no spans are exported[/yellow]: {escape(why)}")
