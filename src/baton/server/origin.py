"""Which trace a request is part of: the headers of W3C Trace Context."""

from __future__ import annotations

from starlette.datastructures import Headers

from baton.core.origin import Origin

_MOST_CHARACTERS = 512
"""As much of each header as the standard asks everyone to keep."""


def origin_of(headers: Headers) -> Origin:
    """The headers as they are, unless they are too long. What they mean is read where spans are made."""
    parents = headers.getlist("traceparent")
    # Of two parents nobody can say which is meant.
    if len(parents) != 1 or len(parents[0]) > _MOST_CHARACTERS:
        return Origin()
    state = ",".join(headers.getlist("tracestate"))
    return Origin(traceparent=parents[0], tracestate=state if len(state) <= _MOST_CHARACTERS else "")
