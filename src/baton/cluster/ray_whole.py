"""Servers that Ray Serve takes the requests for, each with its engine in the same process, and no front between.

Nothing goes on elsewhere: a stream ends with its process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ray import serve

from baton.cluster.ray_cluster import Placing, options
from baton.core.errors import BatonError


class Whole(Protocol):
    """A running engine and its server."""

    app: Any
    """The ASGI application."""

    def rows_wanted(self) -> float:
        """See `Replica`, also for the others."""

    def trouble(self) -> str | None: ...

    def close(self) -> None: ...


OpenWhole = Callable[[Mapping[str, Any]], Whole]
"""Loads a model by these settings, starts its engine and makes its server. Raises BatonError."""


class RayWhole:
    """The class that Ray Serve runs in each process."""

    def __init__(self, open: OpenWhole, values: Mapping[str, Any]) -> None:
        try:
            self._whole = open(values)
        except BatonError as error:
            # Serve shows the text of an error, and our errors do not all survive its pickling.
            raise RuntimeError(error.message) from None

    def __serve_build_asgi_app__(self) -> Any:
        return self._whole.app

    def check_health(self) -> None:
        """Raises if the process must be replaced."""
        if (why := self._whole.trouble()) is not None:
            raise RuntimeError(why)

    def record_autoscaling_stats(self) -> dict[str, float]:
        return {"rows_wanted": self._whole.rows_wanted()}

    def __del__(self) -> None:
        if (whole := getattr(self, "_whole", None)) is not None:
            whole.close()


def application(open: OpenWhole, values: Mapping[str, Any], placing: Placing) -> Any:
    """The application: one deployment, `engine`, which takes the requests."""
    told = options(placing, placing.cpus or 1, placing.gpus or 0)
    del told["request_router_config"]  # the proxy chooses
    of_ray: Any = serve.deployment(serve.ingress()(RayWhole))
    return of_ray.options(**told).bind(open, dict(values))
