"""The origin of a query, for tools that follow it through more than one process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Origin:
    """`operation`: the kind of request, in OpenTelemetry's words: "chat", "text_completion", or "" if unknown.

    `traceparent` and `tracestate`: the headers of W3C Trace Context as they were sent, not parsed, or "".
    """

    operation: str = ""
    traceparent: str = ""
    tracestate: str = ""


NO_ORIGIN = Origin()
