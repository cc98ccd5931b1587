"""Fronts and engines as one application of Ray Serve, for clusters on which Serve itself takes the requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from baton.cluster.ray_cluster import Placing, options
from baton.cluster.ray_engine import RayEngine
from baton.cluster.ray_engines import RayEngines
from baton.cluster.replica import Open
from baton.cluster.wire import About

ENGINE = "engine"
_MOST_REQUESTS = 4096

MakeFront = Callable[[RayEngines, About], Any]
"""Makes the ASGI application of a front over these engines."""


def application(make_front: MakeFront, open: Open, values: Mapping[str, Any], placing: Placing) -> Any:
    """The application: the deployment `front`, which takes the requests, and the deployment `engine`."""
    of_ray: Any = serve.deployment(RayEngine)
    engine = of_ray.options(**options(placing, placing.cpus or 1, placing.gpus or 0)).bind(open, dict(values))

    def asgi() -> Any:
        app = serve.get_replica_context().app_name
        # Serve makes a front in an event loop, in which nothing may be waited for.
        with ThreadPoolExecutor(1) as beside:
            return beside.submit(_front, serve.get_deployment_handle(ENGINE, app_name=app), make_front).result()

    front: Any = serve.deployment(serve.ingress(asgi)())
    named = {"name": "front", "max_ongoing_requests": _MOST_REQUESTS}
    return front.options(**named, graceful_shutdown_timeout_s=placing.drain_seconds + 10).bind(engine)


def _front(handle: DeploymentHandle[Any], make_front: MakeFront) -> Any:
    engines = RayEngines(handle)
    return make_front(engines, engines.open())
