"""What was taken without effect is told: in a header, in the metrics, and in the log at its lowest level."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from starlette.requests import Request
from starlette.responses import Response

HEADER = "x-baton-ignored"

_log = logging.getLogger("baton.server")


class IgnoredFields:
    """`count` gets the names of each request's fields, which are of `field_rules.TOLD`."""

    def __init__(self, count: Callable[[Collection[str]], None]) -> None:
        self._count = count

    def tell(self, request: Request, response: Response, names: Sequence[str]) -> Response:
        """The response, with the header if there is anything to tell."""
        if names:
            told = ", ".join(names)
            response.headers[HEADER] = told
            self._count(names)
            _log.debug("request %s: taken without effect: %s", request.state.request_id, told)
        return response
