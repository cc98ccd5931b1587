"""Puts the rooms together: the only place that knows which body stands behind which port."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from baton import builtin
from baton.batch.batch import RectangleBatch
from baton.batch.feeder import RowFeeder
from baton.batch.prefill import PrefillHere
from baton.batch.rows import Rows
from baton.core.clock import Clock, monotonic
from baton.core.config import ALIGNED, Config, check_loading, check_shaping, threads
from baton.core.errors import LoadError
from baton.core.events import Sink
from baton.core.host import cores, free_memory_bytes
from baton.core.query import Query
from baton.core.settings import Facts, Settings, load_settings, resolve
from baton.core.text import IncrementalDecoder, TextStream
from baton.cuda.async_stepper import AsyncStepper
from baton.cuda.copy_stream import CudaCopyStream
from baton.cuda.forward import CudaForward
from baton.cuda.mapped_rectangle import MappedRectangle
from baton.cuda.offload import HostOffload, trial
from baton.cuda.pinned_memory import HostMemory
from baton.cuda.placement import fastest
from baton.cuda.prefill_stream import PrefillStreamStepper
from baton.cuda.streams import Streams
from baton.engine.client import Client
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.engine.output import OutputProcessor
from baton.grammar.compiler import Grammars
from baton.kv.aligned import AlignedRectangle, keeping_all
from baton.kv.budget import DEVICE_SPARE_BYTES, SPARE_BYTES, Budget
from baton.kv.prefix import prefix_store
from baton.kv.rectangle import Rectangle, footprint, is_lazy
from baton.loader.facts import facts_of
from baton.loader.load import OnPhase, ignore_phase, load
from baton.loader.loaded import Loaded
from baton.loader.threads import start_threads
from baton.model.aligned import AlignedForward
from baton.model.device import free_bytes
from baton.model.execution import PrefillPlacement
from baton.model.forward import TorchForward
from baton.observe.trace import TraceFile, about_engine
from baton.policy.memory_guard import MemoryGuard
from baton.policy.port import Policy, traits
from baton.policy.table import policy_named
from baton.sampling.sampler import Sampler
from baton.testing.faults import Faults
from baton.testing.faults import from_environment as faults_of

log = logging.getLogger("baton.kv")


@dataclass(frozen=True, slots=True)
class EngineHandle:
    """A running engine and its parts."""

    client: Client
    settings: Settings
    facts: Facts
    loaded: Loaded
    trace: TraceFile | None = None

    def close(self) -> None:
        """Cancels live queries, ends the engine's thread and the trace. May be called twice."""
        self.client.close()
        if self.trace is not None:
            self.trace.close()


def open_engine(
    config: Config,
    *,
    policy: Policy | None = None,
    sinks: Sequence[Sink] = (),
    on_phase: OnPhase = ignore_phase,
) -> EngineHandle:
    """Loads the model and starts the engine's thread. Raises SettingError and LoadError."""
    faults = faults_of(os.environ)
    policy = policy or policy_named(config.policy)
    check_shaping(config, traits(policy))
    check_loading(config)
    trace = None if config.trace is None else TraceFile(config.trace)
    loaded, name = open_model(config, on_phase=on_phase), model_name(config)
    # Objects of now are excluded from Python's garbage collector, which would stop everything for a third of a second.
    gc.collect()
    gc.freeze()
    facts = facts_of(loaded)
    settings = resolve(config, facts, traits(policy))
    if trace is not None:
        if faults is not None:
            faults.before("trace", trace, "write")
        trace.begin(about_engine(name, settings, facts))
        sinks = [*sinks, trace]
    began = monotonic()
    client = start(loaded, settings, policy, name, sinks, faults=faults)
    if isinstance(loaded.forward, CudaForward) and loaded.forward.ragged is not None:
        on_phase("steps", monotonic() - began)
    return EngineHandle(client, settings, facts, loaded, trace)


def open_model(
    config: Config, *, on_phase: OnPhase = ignore_phase, before: Callable[[Any], None] | None = None
) -> Loaded:
    """Loads the model, with as many threads as were asked for. `before`: see `load`."""
    set_threads(config)
    asked = load_settings(config, config.model or str(builtin.path()), model_name(config))
    return load(asked, on_phase=on_phase, before=before)


def start(
    loaded: Loaded,
    settings: Settings,
    policy: Policy,
    name: str,
    sinks: Sequence[Sink] = (),
    *,
    faults: Faults | None = None,
) -> Client:
    """An engine with its own thread; several may be started on a model one after the other, not at once."""
    engine = make_engine(loaded, settings, policy, sinks, faults=faults)
    loaded.tokenizer.prepare(settings.max_model_len)
    return Client(
        model_name=name,
        settings=settings,
        tokenizer=loaded.tokenizer,
        fit=loaded.tokenizer.fit,
        defaults=loaded.generation.sampling,
        loop=EngineLoop(engine, monotonic, sinks),
        clock=monotonic,
        honours=traits(policy).honours,
        compiler=Grammars(loaded.tokenizer, loaded.end_ids, settings.limits),
    )


def make_engine(
    loaded: Loaded,
    settings: Settings,
    policy: Policy,
    sinks: Sequence[Sink] = (),
    *,
    sampler: Sampler | None = None,
    faults: Faults | None = None,
    clock: Clock = monotonic,
    prompts: PrefillPlacement | None = None,
) -> Engine:
    """An engine on a loaded model, without a thread. `sampler`: replaces the stock one, for code that listens in.

    `prompts`: where they are computed on a device that has streams; None: wherever that is fastest.
    """
    sampler = sampler or Sampler(loaded.end_ids)
    if faults is not None:
        sampler = faults.sampler(sampler)
    if settings.deterministic:
        loaded = loaded.fixed(settings.max_rows)
    if traits(policy).prompts_in_step:
        prompts = PrefillPlacement.AFTER_DECODE
    offload = _offload(loaded, settings)
    batch, prefiller = _bodies(loaded, settings, sampler, offload, prompts)
    rectangle, footprint = prefiller.rectangle, batch.footprint

    def text_of(query: Query) -> TextStream:
        skip, visible = query.params.skip_special_tokens, query.visible_special_tokens
        decoder: IncrementalDecoder = loaded.tokenizer.stream(
            query.prompt, skip_special_tokens=skip, visible_special_tokens=visible
        )
        special = loaded.tokenizer.special if skip and query.params.stop else {}
        silent = {token: name for name, token in special.items() if token not in visible}
        decoder = decoder if faults is None else faults.decoder(decoder, query.seed)
        return TextStream(decoder, query.params.stop, silent)

    longest = loaded.forward.long_rope_limit
    prefixes = prefix_store(rectangle, longest=longest, offload=offload) if settings.prefix_cache else None
    engine = Engine(
        batch=batch,
        prefiller=prefiller,
        policy=MemoryGuard(policy),
        settings=settings,
        outputs=OutputProcessor(text_of, loaded.end_ids),
        footprint=footprint,
        stamp=loaded.stamp,
        budget=Budget(
            settings.kv_bytes,
            settings.swap_bytes,
            floor_bytes=footprint.of(settings.max_model_len),
            free_bytes=lambda: free_bytes(loaded.device) + rectangle.spare_bytes,
            clock=clock,
            lazy=is_lazy(loaded.device) or rectangle.mapped,
            spare_bytes=DEVICE_SPARE_BYTES if rectangle.mapped else SPARE_BYTES,
            swap_free_bytes=None if offload is None else lambda: free_memory_bytes() + offload.host.idle_bytes,
        ),
        clock=clock,
        sinks=sinks,
        whole_prompts=loaded.forward.whole_prompts,
        prefix_store=prefixes,
        chosen_share=loaded.chosen_share,
    )
    if faults is not None:
        faults.inject(engine)
    return engine


def _offload(loaded: Loaded, settings: Settings) -> HostOffload | None:
    """What copies rows out of a device with memory of its own; None if nothing does."""
    # Aligned rows are for study; their segments stay where they are.
    if loaded.device.type != "cuda" or settings.shaping == ALIGNED or not settings.swap_bytes:
        return None
    longest = footprint(loaded.geometry.shapes, settings.max_model_len, loaded.dtype, loaded.device)
    row_bytes = longest.of(settings.max_model_len)
    offload = HostOffload(CudaCopyStream(loaded.device), HostMemory(settings.swap_bytes, longest=row_bytes), row_bytes)
    trouble = trial(offload, loaded.device)
    if trouble:
        log.warning("what is swapped out or stored stays on the device (%s)", trouble)
    return None if trouble else offload


def _bodies(
    loaded: Loaded, settings: Settings, sampler: Sampler, offload: HostOffload | None, prompts: PrefillPlacement | None
) -> tuple[RectangleBatch, PrefillHere]:
    """The batch and the prefiller. Raises LoadError if the model's rows cannot be shaped as asked."""
    rows, prefill_rows, forward, stamp = settings.max_rows, settings.max_rows + 1, loaded.forward, loaded.stamp
    of: dict[str, Any] = {"columns": settings.max_model_len, "dtype": loaded.dtype, "device": loaded.device}
    if settings.shaping != ALIGNED:
        # The batch's rows, and after them the prefiller's: one rectangle, so that one forward can feed both.
        make: Callable[..., Rectangle] = Rectangle
        if settings.kv_mapping:
            assert loaded.driver is not None
            make = partial(MappedRectangle, driver=loaded.driver, most_bytes=settings.kv_bytes)
        rectangle = make(loaded.geometry.shapes, capacity=rows + prefill_rows, **of)
        both = _rows(rectangle, loaded, rows, sampler, offload, prompts)
        prefiller = PrefillHere(both, range(rows, rows + prefill_rows), beside_batch=True)
        return RectangleBatch(both, range(rows), rows), prefiller
    shapes = keeping_all(loaded.geometry.shapes)
    if not isinstance(forward, TorchForward):
        raise LoadError("--shaping aligned: needs steps in torch: add --no-compile")
    body = AlignedRectangle(shapes, capacity=rows, **of)
    aligned = Rows(RowFeeder(body, AlignedForward(forward, body), sampler), stamp)
    apart = Rows(RowFeeder(Rectangle(shapes, capacity=prefill_rows, **of), forward, sampler), stamp)
    return RectangleBatch(aligned, range(rows), rows), PrefillHere(apart, range(prefill_rows), beside_batch=False)


def _rows(
    rectangle: Rectangle,
    loaded: Loaded,
    most: int,
    sampler: Sampler,
    offload: HostOffload | None,
    prompts: PrefillPlacement | None,
) -> Rows:
    """Rows. On a device that can be fed ahead, each step begins before the last one is read."""
    forward = loaded.forward
    feeder = RowFeeder(rectangle, forward, sampler)
    steps = forward.steps(rectangle) if isinstance(forward, CudaForward) else None
    if not isinstance(forward, CudaForward) or steps is None or sampler.sees_logits:
        return Rows(feeder, loaded.stamp, offload=offload)
    steps.warm(most)
    stepper = AsyncStepper(feeder, steps)
    if loaded.device.type == "cuda" and prompts is not PrefillPlacement.AFTER_DECODE:
        beside = PrefillStreamStepper(feeder, steps, Streams(rectangle))
        tried = Rows(feeder, loaded.stamp, stepper=beside, offload=offload)
        stepper.placement = prompts or fastest(tried, beside, forward, most)
        if stepper.placement is PrefillPlacement.SIDE_STREAM:
            return tried
    return Rows(feeder, loaded.stamp, stepper=stepper, offload=offload)


def model_name(config: Config) -> str:
    """The name that requests use: as asked, or the hub id or folder as it was given."""
    return config.served_model_name or config.model or builtin.NAME


def set_threads(config: Config) -> None:
    """Sets how many threads compute. Raises SettingError; LoadError if too few start."""
    start_threads(threads(config, cores()), beside=config.max_compiling)
