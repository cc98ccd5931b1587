"""Puts the rooms together: the only place that knows which body stands behind which port."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from baton import builtin
from baton.batch.batch import RectangleBatch
from baton.clock import monotonic
from baton.config import AUTO, Config, Facts, Settings, resolve
from baton.engine.client import Client
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.engine.talk import Talks
from baton.errors import SettingError
from baton.events import Sink
from baton.kv.rectangle import Rectangle, footprint, is_lazy
from baton.model.load import Loaded, Told, load
from baton.model.rows import Rows
from baton.model.sample import Sampler
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Policy
from baton.policy.run_to_completion import RunToCompletion
from baton.prefill.here import PrefillHere
from baton.query import Query
from baton.text import TextStream

POLICIES: dict[str, Callable[[], Policy]] = {
    "baton": Baton,
    "orca": Orca,
    "run_to_completion": RunToCompletion,
}
BUILTIN_NAME = "baton-builtin"


@dataclass(frozen=True, slots=True)
class House:
    """A running engine and what it was made of."""

    client: Client
    settings: Settings
    facts: Facts
    loaded: Loaded


def open_house(
    config: Config,
    *,
    policy: Policy | None = None,
    sinks: Sequence[Sink] = (),
    told: Told = lambda phase, seconds: None,
) -> House:
    """Loads the model and starts the engine's thread. Raises SettingError and LoadError."""
    if config.policy not in POLICIES:
        raise SettingError(f"--policy {config.policy}: there is {', '.join(POLICIES)}", param="policy")
    set_threads(config)
    name = model_name(config)
    loaded = load(config, config.model or str(builtin.path()), name, told=told)
    facts = facts_of(loaded)
    settings = resolve(config, facts)
    client = start(loaded, settings, policy or POLICIES[settings.policy](), name, sinks)
    return House(client, settings, facts, loaded)


def start(loaded: Loaded, settings: Settings, policy: Policy, name: str, sinks: Sequence[Sink] = ()) -> Client:
    """An engine of its own on a loaded model: several may be started one after the other, not at once."""
    sampler = Sampler(loaded.end_ids)

    # The batch's rows, and behind them the prefiller's: one rectangle, so that one forward can feed both.
    mine, beside = range(settings.max_rows), range(settings.max_rows, 2 * settings.max_rows + 1)
    rectangle = Rectangle(
        loaded.geometry.shapes,
        capacity=beside.stop,
        columns=settings.max_model_len,
        dtype=loaded.dtype,
        device=loaded.device,
    )
    rows = Rows(rectangle, loaded.forward, sampler, loaded.stamp)

    def text_of(query: Query) -> TextStream:
        decoder = loaded.tokenizer.stream(query.prompt, skip_special_tokens=query.params.skip_special_tokens)
        return TextStream(decoder, query.params.stop)

    engine = Engine(
        batch=RectangleBatch(rows, mine, settings.max_rows),
        prefiller=PrefillHere(rows, beside, beside_batch=True),
        policy=policy,
        settings=settings,
        talks=Talks(text_of, loaded.end_ids),
        footprint=rectangle.footprint,
        stamp=loaded.stamp,
        clock=monotonic,
        sinks=sinks,
    )
    return Client(
        model_name=name,
        settings=settings,
        tokenizer=loaded.tokenizer,
        loop=EngineLoop(engine, monotonic, sinks),
        clock=monotonic,
    )


def model_name(config: Config) -> str:
    """The name that requests use: as asked, or the hub id or folder as it was given."""
    return config.served_model_name or config.model or BUILTIN_NAME


def facts_of(loaded: Loaded) -> Facts:
    cuda = loaded.device.type == "cuda"
    return Facts(
        context_tokens=loaded.context_tokens,
        footprint=footprint(loaded.geometry.shapes, loaded.context_tokens, loaded.dtype, loaded.device),
        free_bytes=torch.cuda.mem_get_info(loaded.device)[0] if cuda else free_memory_bytes(),
        device=loaded.device.type,
        dtype=str(loaded.dtype).removeprefix("torch."),
        cores=cores(),
        lazy_memory=is_lazy(loaded.device),
        policies=tuple(POLICIES),
    )


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """What this process may still take: the machine's free memory, or less where its control group has a limit."""
    free = psutil.virtual_memory().available
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no such control group, or its limit is "max"
        return free


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(config: Config) -> None:
    if config.threads == AUTO:
        torch.set_num_threads(cores())
        return
    if not config.threads.isdecimal() or not int(config.threads):
        raise SettingError(f"--threads {config.threads}: must be a whole number above 0, or auto", param="threads")
    torch.set_num_threads(int(config.threads))
