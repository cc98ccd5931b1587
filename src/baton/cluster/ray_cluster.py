"""Starts Ray for this command alone, or joins a cluster, and places engines on it with Ray Serve."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from baton.cluster.ray_engine import RayEngine
from baton.cluster.ray_lease import NAMESPACE, lease
from baton.cluster.replica import Open
from baton.core.errors import BatonError, LoadError, SettingError
from baton.core.replicas import Range

ENGINE, PREFILL = "engine", "prefill"
"""Names of deployments."""
# Orders are queries as text, and news are tokens: nothing large is kept.
_STORE_BYTES = 256 * 2**20
# Paths of sockets have at most 107 characters, of which Ray's own part takes some 65.
_LONGEST_FOLDER = 30
_REACH_SECONDS = 10.0
_HEALTH_SECONDS, _HEALTH_TIMEOUT_SECONDS = 2.0, 30.0
# Long streams and orders of all fronts; what waits, waits in engines' own queues.
_MOST_CALLS = 4096


@dataclass(frozen=True, slots=True)
class Placing:
    """How many engines there are, and what each takes.

    `cpus` and `gpus`: None for a share of what the cluster has. `prefill`: so many more are for prompts.
    """

    replicas: Range
    cpus: int | None
    gpus: int | None
    drain_seconds: float
    prefill: int = 0

    @property
    def most(self) -> int:
        """The most engines that there are at once."""
        return self.replicas.most + self.prefill


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray that is there.

    `logs`: the folder of its logs; "" if it is not ours. `lease`: the actor that lives while this front does, if Ray
    goes on without it; else "".
    """

    logs: str
    alone: bool
    name: str
    lease: str = ""

    def cpus(self, placing: Placing) -> int:
        """Cores of each engine."""
        shared = int(ray.cluster_resources().get("CPU", 1)) // placing.most
        return placing.cpus or max(1, shared)

    def gpus(self, placing: Placing) -> int:
        """GPUs of each engine."""
        found = ray.cluster_resources().get("GPU", 0)
        return int(found >= 1) if placing.gpus is None else placing.gpus

    def deploy(self, open: Open, values: Mapping[str, Any], placing: Placing) -> DeploymentHandle[Any]:
        """Starts the engines, and returns when the first of them are there. Raises LoadError."""
        cpus, gpus, of_ray = self.cpus(placing), self.gpus(placing), deployment()
        more: dict[str, Any] = {"loopback": self.alone, "lease": self.lease}
        if placing.prefill:
            # Serve starts what the engines are given, which do nothing with it.
            more["beside"] = of_ray.options(**prefill_options(placing, cpus, gpus)).bind(open, dict(values), **more)
        app = of_ray.options(**options(placing, cpus, gpus)).bind(open, dict(values), **more)
        try:
            return serve.run(app, name=self.name, route_prefix=None)
        except (RuntimeError, RayError) as error:
            raise LoadError(f"the engines did not start: {str(error).strip()}") from None


def deployment() -> Any:
    """The class of engines, which deployments are made of."""
    of_ray: Any = serve.deployment(RayEngine)
    return of_ray


def prefill_of(handle: DeploymentHandle[Any], placing: Placing) -> DeploymentHandle[Any] | None:
    """The engines for prompts beside these engines, if there are any."""
    return serve.get_deployment_handle(PREFILL, app_name=handle.app_name) if placing.prefill else None


def prefill_options(placing: Placing, cpus: int, gpus: int) -> dict[str, Any]:
    """What Serve is told of the engines for prompts."""
    alike = dataclasses.replace(placing, replicas=Range(placing.prefill, placing.prefill))
    return {**options(alike, cpus, gpus), "name": PREFILL}


def options(placing: Placing, cpus: int, gpus: int) -> dict[str, Any]:
    """What Serve is told of the engines."""
    least, most = placing.replicas
    scaling: dict[str, Any] = {"num_replicas": least}
    if placing.replicas.scales:
        policy = AutoscalingPolicy(policy_function="baton.cluster.ray_wanted:wanted")
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least,
                max_replicas=most,
                initial_replicas=least,
                upscale_delay_s=5,
                downscale_delay_s=60,
                look_back_period_s=5,
                metrics_interval_s=1,  # as in `environment.py`
                policy=policy,
            )
        }
    router: Any = "baton.cluster.ray_router:EngineRouter"
    return {
        "name": ENGINE,
        **scaling,
        "max_ongoing_requests": _MOST_CALLS,
        "graceful_shutdown_wait_loop_s": 0.2,
        "graceful_shutdown_timeout_s": placing.drain_seconds + 10,
        "health_check_period_s": _HEALTH_SECONDS,
        "health_check_timeout_s": _HEALTH_TIMEOUT_SECONDS,
        "request_router_config": RequestRouterConfig(request_router_class=router),
        "ray_actor_options": {"num_cpus": cpus, "num_gpus": gpus},
    }


@contextlib.contextmanager
def cluster(address: str | None, placing: Placing, cores: int) -> Iterator[Cluster]:
    """Ray, started here and ended with the block, or joined. Raises SettingError and LoadError.

    `cores`: of this machine. `environment.prepare` must have been called before this module is imported. The block
    must be entered in the main thread: all processes that are started here end with the thread that started them.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address is None:
        with _alone(placing, cores) as ours:
            yield ours
        return
    _check_reached(address)
    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise SettingError(f"--ray-address {address}: {str(error).strip()}", param="ray_address") from None
    name = f"baton-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        serve.start(proxy_location="Disabled")
        with lease(name):
            yield Cluster("", alone=False, name=name, lease=name)
    finally:
        with contextlib.suppress(Exception):  # the cluster is gone
            serve.delete(name, _blocking=False)
        ray.shutdown()


def _check_reached(address: str) -> None:
    """Raises SettingError at once if nothing listens there. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        message = f"--ray-address {address}: no Ray answers there ({error})"
        raise SettingError(message, param="ray_address") from None


@contextlib.contextmanager
def _alone(placing: Placing, cores: int) -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="baton-ray-", dir=_short(tempfile.gettempdir()))
    try:
        ray.init(
            num_cpus=max(cores, placing.most * (placing.cpus or 1)),
            num_gpus=None if placing.gpus is None else placing.gpus * placing.most,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=_STORE_BYTES,
            namespace=NAMESPACE,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        serve.start(proxy_location="Disabled")
        yield Cluster(os.path.join(folder, "session_latest", "logs"), alone=True, name="baton")
    except (RuntimeError, ConnectionError, TimeoutError, RayError) as error:
        if isinstance(error, BatonError):
            raise
        raise LoadError(f"Ray did not start: {str(error).strip()}") from None
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _short(folder: str) -> str:
    return folder if len(folder) <= _LONGEST_FOLDER or os.name != "posix" else "/tmp"
