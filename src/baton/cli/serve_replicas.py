"""The server over several engines: a front in this process, and Ray Serve, which places and watches the engines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from baton import __version__
from baton.cli.serve_replica import EngineReplica
from baton.cli.show import errors, tell_open, tell_ready
from baton.cluster.far import FarLoop
from baton.cluster.ray_cluster import Cluster, Placing, cluster, prefill_of
from baton.cluster.ray_engines import RayEngines
from baton.compose import model_name
from baton.core.clock import monotonic
from baton.core.config import AUTO, Config
from baton.core.errors import EngineUnhealthy
from baton.core.events import QueryRejected
from baton.core.host import cores
from baton.core.replicas import range_of
from baton.core.settings import ServerSettings, has_keys
from baton.engine.client import Client
from baton.fronts import open_front
from baton.jobs.folder import Folder
from baton.observe.merged import MergedMetrics
from baton.observe.metrics import Metrics
from baton.server.app import create_app
from baton.server.auth import Access, is_loopback
from baton.server.run import Hang, serve


def run_replicas(
    config: Config,
    server: ServerSettings,
    bound: socket.socket,
    access: Access,
    began: float,
    batches: Folder | None = None,
) -> None:
    """Starts the engines and serves on a bound socket until told to end. Raises SettingError and LoadError.

    `cluster.environment.prepare` must have been called before this module is imported.
    """
    placing = placing_of(config)
    # Until the server has handlers of its own: what is started here is to end with this process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    errors.print(f"[bold]baton {__version__}[/bold]  {'the built-in model' if not config.model else config.model}")
    with cluster(config.ray_address, placing, cores()) as ray:
        _tell("Ray", began, f"logs in {ray.logs}" if ray.logs else config.ray_address or "")
        handle = ray.deploy(EngineReplica, replica_values(config, ray.cpus(placing)), placing)
        engines = RayEngines(handle, prefill_of(handle, placing))
        with contextlib.closing(engines):
            about = engines.open()
            _tell("engines", began, _engines(config, ray, placing))
            client = open_front(config, engines, about)
            try:
                client.prepare()
                _serve(config, server, bound, access, began, client, engines, batches)
            finally:
                client.close()


def placing_of(config: Config) -> Placing:
    gpus = 0 if config.device == "cpu" else None if config.replica_gpus == AUTO else int(config.replica_gpus)
    cpus = None if config.replica_cpus == AUTO else int(config.replica_cpus)
    return Placing(range_of(config.replicas or "1"), cpus, gpus, config.drain_timeout, config.prefill_replicas)


_OF_THE_FRONT = (
    *("replicas", "ray_address", "replica_cpus", "replica_gpus"),
    *("replica_handover", "prefill_replicas", "losses"),
)


def replica_values(config: Config, cpus: int) -> dict[str, Any]:
    """The settings of an engine, as plain data. Keys stay with the front."""
    here = Config()
    values = {known.name: getattr(config, known.name) for known in dataclasses.fields(Config)}
    for name in (*_OF_THE_FRONT, "batch_dir", "api_key_file"):
        values[name] = getattr(here, name)
    values["api_key"] = ("known to the front",) if has_keys(config) else ()
    if config.threads == AUTO:
        values["threads"] = str(cpus)
    for name in ("model", "chat_template"):
        # Engines have another working directory.
        if values[name] is not None and os.path.exists(values[name]):
            values[name] = os.path.abspath(values[name])
    # A folder's name changes with that.
    values["served_model_name"] = model_name(config)
    return {name: value for name, value in values.items() if value != getattr(here, name)}


def _serve(
    config: Config,
    server: ServerSettings,
    bound: socket.socket,
    access: Access,
    began: float,
    client: Client,
    engines: RayEngines,
    batches: Folder | None,
) -> None:
    app = front_app(server, access, client, engines, batches)

    def started(url: str) -> None:
        if not access.keys and not is_loopback(bound.getsockname()[0]):
            tell_open()
        tell_ready(time.perf_counter() - began, url)

    try:
        serve(
            app,
            bound,
            drain=app.state.drain,
            drain_timeout_seconds=server.drain_seconds,
            limits=client.settings.limits,
            hang=Hang(server.hang_seconds, server.hang_exit_seconds, client.stuck_seconds),
            on_started=started,
        )
    finally:
        app.state.close()
        stats = client.stats()
        with contextlib.suppress(OSError):  # the terminal is closed
            errors.print(
                f"ended: {stats.outcomes.get('finished', 0)} queries finished, "
                f"{stats.generated_tokens:,} tokens generated by the engines that are left"
            )


def front_app(
    server: ServerSettings, access: Access, client: Client, engines: RayEngines, batches: Folder | None = None
) -> Any:
    """The application of a server over several engines."""
    own = Metrics(client.model_name, monotonic)
    if isinstance(client.loop, FarLoop):
        client.loop.tell_refusals(own)
    app = create_app(
        client,
        render_metrics=metrics_of(client, engines, own, compat=server.vllm_names),
        live_of=live_of(engines),
        version=__version__,
        access=access,
        reject=lambda code: own(QueryRejected(monotonic(), code)),
        ignore=own.fields_ignored,
        batches=batches,
    )
    app.openapi()  # made once now, because making it later would hold up the event loop
    return app


def metrics_of(client: Client, engines: RayEngines, own: Metrics, *, compat: bool) -> Callable[[], tuple[bytes, str]]:
    """The metrics page over all engines. `own`: what the front counts itself."""
    merged = MergedMetrics(client.model_name, compat=compat)

    def render() -> tuple[bytes, str]:
        stats, names = client.stats(), engines.names()
        told = engines.ask("metrics", engines=names)
        return merged.render(own.told(stats), told, names, stats, prefill=engines.prefill_names())

    return render


def live_of(engines: RayEngines) -> Callable[[int, float, str], bytes]:
    """What the live page draws of one engine; of the first if it is gone."""

    def live(serial: int, time: float, replica: str) -> bytes:
        names = engines.names()
        if not names:
            raise EngineUnhealthy("no engine is there")
        name = replica if replica in names else names[0]
        if name not in (heard := engines.ask("live", serial, time, engines=[name])):
            raise EngineUnhealthy(f"engine {name} does not answer")
        more = json.dumps({"replica": name, "replicas": list(names), "prefill": list(engines.prefill_names())})
        return bytes(heard[name][:-1]) + b"," + more[1:].encode()

    return live


def _engines(config: Config, ray: Cluster, placing: Placing) -> str:
    least, most = placing.replicas
    each = f"{ray.cpus(placing)} cores" + (f" and {ray.gpus(placing)} GPUs" if ray.gpus(placing) else "")
    prompts = f", {placing.prefill} of them besides for prompts" if placing.prefill else ""
    return f"{least if least == most else f'{least} to {most}'} of {each} each{prompts}"


def _tell(what: str, began: float, more: str) -> None:
    errors.print(f"  {what:<12}after {time.perf_counter() - began:.1f} s: {more}")


logging.getLogger("ray.serve").setLevel(logging.ERROR)
