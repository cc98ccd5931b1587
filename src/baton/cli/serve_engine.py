"""The server over one engine, from its bound socket to its clean end."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch

from baton import __version__
from baton.cli.live import live_view, read_bytes_per_second
from baton.cli.show import errors, in_units, tell_open, tell_phase, tell_ready
from baton.cli.spans import spans_of
from baton.compose import EngineHandle, model_name, open_engine, set_threads
from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.events import QueryRejected, Sink
from baton.core.generation_defaults import NO_DEFAULTS
from baton.core.settings import ServerSettings, limits_of
from baton.jobs.folder import Folder
from baton.kv.handover import HandoverFolder
from baton.observe.metrics import Metrics
from baton.observe.timeline import Timeline
from baton.server.app import create_app
from baton.server.auth import Access, is_loopback
from baton.server.run import Hang, serve


def run_bound(
    config: Config,
    server: ServerSettings,
    bound: socket.socket,
    access: Access,
    began: float,
    batches: Folder | None = None,
    *,
    on_started: Callable[[EngineHandle], None] | None = None,
) -> None:
    """Loads the model and serves on a bound socket until told to end.

    `batches`: keeps files and batches. `on_started`: called once requests are taken, instead of telling people the
    address.
    """
    metrics = Metrics(model_name(config), monotonic, compat=server.vllm_names)
    errors.print(f"[bold]baton {__version__}[/bold]  {'the built-in model' if not config.model else config.model}")
    tell_phase("imports", time.perf_counter() - began)
    set_threads(config)
    read_bytes, timeline = read_bytes_per_second(), Timeline()
    spans = spans_of(model_name(config), os.environ)
    sinks: list[Sink] = [metrics, timeline, *([] if spans is None else [spans])]
    handover = None
    if server.handover is not None:
        most = limits_of(config).handover_bytes
        handover = HandoverFolder(Path(server.handover), most, monotonic, logging.getLogger("baton.server").warning)
    engine = open_engine(config, sinks=sinks, on_phase=tell_phase)
    opened = time.perf_counter()
    engine.client.prepare()
    tell_phase("forms", time.perf_counter() - opened)
    metrics.max_rows = engine.settings.max_rows
    errors.print(_resolved(engine))
    if on_started is None and not access.keys and not is_loopback(bound.getsockname()[0]):
        tell_open()
    app = create_app(
        engine.client,
        render_metrics=lambda: metrics.render(engine.client.stats()),
        live=live_view(engine, timeline, read_bytes),
        version=__version__,
        access=access,
        reject=lambda code: metrics(QueryRejected(monotonic(), code)),
        ignore=metrics.fields_ignored,
        batches=batches,
        handover=handover,
    )

    app.openapi()  # made once now, because making it later would hold up the event loop

    def started(url: str) -> None:
        if on_started is not None:
            on_started(engine)
            return
        tell_ready(time.perf_counter() - began, url)

    if handover is not None:
        errors.print(f"  {'handover':<12}answers go on in the next process ({server.handover})")
    try:
        serve(
            app,
            bound,
            drain=app.state.drain,
            drain_timeout_seconds=server.drain_seconds,
            limits=engine.settings.limits,
            hang=Hang(server.hang_seconds, server.hang_exit_seconds, engine.client.stuck_seconds),
            on_started=started,
        )
    finally:
        app.state.close()
        engine.close()
        if handover is not None:
            handover.close()
        if spans is not None:
            spans.close()
        with contextlib.suppress(OSError):  # the terminal is closed
            errors.print(_summary(engine))


def _resolved(engine: EngineHandle) -> str:
    facts, settings, loaded = engine.facts, engine.settings, engine.loaded
    lines = {
        "model": f"{loaded.name}, {loaded.parameters / 1e6:,.1f} M parameters, {facts.dtype} on {facts.device}",
        "batch": f"policy {settings.policy}, {settings.max_rows} rows of up to {settings.max_model_len} tokens",
        "context": f"{facts.context_tokens:,} tokens ({facts.context_source})",
        "run with": loaded.description + ("; shapes are fixed" if settings.deterministic else ""),
        "KV memory": f"{in_units(settings.kv_bytes)} for rows and {in_units(settings.swap_bytes)} "
        f"{'' if facts.swap_free_bytes is None else 'of the host '}for what is swapped out, "
        f"{in_units(facts.footprint.token_bytes)} a token" + _mapped(engine),
        "threads": f"{torch.get_num_threads()} of {facts.cores} cores",
    }
    if loaded.generation != NO_DEFAULTS:
        lines["defaults"] = f"{loaded.generation} (generation_config.json)"
    return "\n".join(f"  {name:<12}{value}" for name, value in lines.items())


def _mapped(engine: EngineHandle) -> str:
    """Describes how memory is mapped, if it was asked to be mapped as rows grow."""
    if engine.settings.kv_mapping:
        return ", mapped as rows grow"
    why_not = engine.loaded.why_not_mapped or (engine.loaded.driver and "not for padded rows")
    return f"; not mapped as rows grow: {why_not}" if why_not else ""


def _summary(engine: EngineHandle) -> str:
    stats = engine.client.stats()
    finished = stats.outcomes.get("finished", 0)
    return (
        f"ended: {finished} queries finished, {stats.generated_tokens:,} tokens generated, "
        f"{stats.slots.idle_ratio:.1%} of the computed token slots were idle"
    )
