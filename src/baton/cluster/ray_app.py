"""Fronts and engines as one application of Ray Serve, for clusters on which Serve itself takes the requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from baton.cluster.ray_cluster import ENGINE, Placing, deployment, options, prefill_of, prefill_options
from baton.cluster.ray_engines import RayEngines
from baton.cluster.replica import Open
from baton.cluster.wire import About

_MOST_REQUESTS = 4096

MakeFront = Callable[[RayEngines, About], Any]
"""Makes the ASGI application of a front over these engines."""


def application(make_front: MakeFront, open: Open, values: Mapping[str, Any], placing: Placing) -> Any:
    """The application: the deployment `front`, which takes the requests, and the deployment `engine`."""
    cpus, gpus = placing.cpus or 1, placing.gpus or 0
    engine = deployment().options(**options(placing, cpus, gpus)).bind(open, dict(values))
    some = [engine]
    if placing.prefill:
        some.append(deployment().options(**prefill_options(placing, cpus, gpus)).bind(open, dict(values)))

    def asgi() -> Any:
        app = serve.get_replica_context().app_name
        # Serve makes a front in an event loop, in which nothing may be waited for.
        with ThreadPoolExecutor(1) as beside:
            handle = serve.get_deployment_handle(ENGINE, app_name=app)
            return beside.submit(_front, handle, placing, make_front).result()

    front: Any = serve.deployment(serve.ingress(asgi)())
    named = {"name": "front", "max_ongoing_requests": _MOST_REQUESTS}
    return front.options(**named, graceful_shutdown_timeout_s=placing.drain_seconds + 10).bind(*some)


def _front(handle: DeploymentHandle[Any], placing: Placing, make_front: MakeFront) -> Any:
    engines = RayEngines(handle, prefill_of(handle, placing))
    return make_front(engines, engines.open())
