"""Where a query comes from, for those who follow it through more than one process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Origin:
    """`operation`: what was asked for, in OpenTelemetry's words: "chat", "text_completion", or "" where nobody said.

    `traceparent` and `tracestate`: the headers of W3C Trace Context as they were sent, read by nobody yet, or "".
    """

    operation: str = ""
    traceparent: str = ""
    tracestate: str = ""


NO_ORIGIN = Origin()
