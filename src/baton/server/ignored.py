"""Reports fields that were taken without effect: in a header, in the metrics, and in the log at its lowest level."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from starlette.requests import Request
from starlette.responses import Response

HEADER = "x-baton-ignored"

_log = logging.getLogger("baton.server")


class IgnoredFields:
    """`count` gets the names of each request's fields, which are names of `field_rules.REPORTED`."""

    def __init__(self, count: Callable[[Collection[str]], None]) -> None:
        self._count = count

    def tell(self, request: Request, response: Response, names: Sequence[str]) -> Response:
        """Returns the response, with the header if there is anything to report."""
        if names:
            joined = ", ".join(names)
            response.headers[HEADER] = joined
            self._count(names)
            _log.debug("request %s: taken without effect: %s", request.state.request_id, joined)
        return response
