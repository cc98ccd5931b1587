"""One workload through several settings on one loaded model: alternated, repeated, each answer held against alone."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from baton import __version__
from baton.bench.drive import Mode, drive
from baton.bench.figures import NO_GOAL, Figures, Goal, figures
from baton.bench.picture import Moment, Picture, Stay, merged
from baton.bench.workload import Ask, Workload
from baton.builtin.tasks import CHECKABLE_TASKS, check, questions
from baton.clock import monotonic
from baton.compose import POLICIES, facts_of, start
from baton.config import Config, Settings, make_config, resolve
from baton.engine.client import Client
from baton.errors import InvalidValue, SettingError
from baton.events import Event, IterationDone, QueryMoved, Slots
from baton.model.load import Loaded
from baton.observe.timeline import Timeline
from baton.query import SamplingParams, State

# Settings that belong to the engine, and not to the model as it was loaded.
VARIED = frozenset(
    {
        "policy",
        "max_batch_size",
        "kv_memory",
        "pool_memory",
        "shaping",
        "prefix_cache",
        "prefill_chunk",
        "max_stall_ms",
    }
)
WARM_UP_TOKENS = 8
LONGEST_ANSWER = 400


@dataclass(frozen=True, slots=True)
class Contender:
    """A name, and what is set differently from the common settings."""

    name: str
    changes: Mapping[str, str]


@dataclass(slots=True)
class Tally:
    """A sink: what a run's iterations came to."""

    slots: Slots = field(default_factory=Slots)
    preemptions: int = 0
    kv_bytes_most: int = 0
    moments: list[Moment] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, IterationDone):
            self.slots.add(event.slots)
            self.kv_bytes_most = max(self.kv_bytes_most, event.kv_bytes_used)
            idle = event.slots.empty_row + event.slots.finished_row > 0
            self.moments.append(Moment(event.time - event.seconds, event.time, event.rows, idle))
        elif isinstance(event, QueryMoved) and event.was is State.RUNNING and event.now.live:
            self.preemptions += 1


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of one contender; `turn` counts from 0."""

    contender: str
    turn: int
    figures: Figures
    picture: Picture


def contenders(policies: Sequence[str], varied: Sequence[str]) -> list[Contender]:
    """Each policy with each combination of `varied`, which are like "max_batch_size=4,8". Raises SettingError."""
    found = [Contender(policy, {"policy": policy}) for policy in policies]
    for spec in varied:
        name, _, values = spec.replace("-", "_").partition("=")
        if name not in VARIED or not values:
            known = ", ".join(sorted(VARIED - {"policy"}))
            raise SettingError(f"--vary {spec}: must be like max_batch_size=4,8; there is {known}", param="vary")
        found = [
            Contender(f"{one.name} {name}={value}", {**one.changes, name: value})
            for one in found
            for value in values.split(",")
        ]
    return found


def settings_of(config: Config, loaded: Loaded, contender: Contender) -> Settings:
    """Raises SettingError."""
    return resolve(changed(config, contender), facts_of(loaded))


def changed(config: Config, contender: Contender) -> Config:
    """The common settings with the contender's own. Raises SettingError."""
    checked = {name: getattr(make_config({name: value}), name) for name, value in contender.changes.items()}
    return dataclasses.replace(config, **checked)


def trials(
    loaded: Loaded,
    config: Config,
    some: Sequence[Contender],
    workload: Workload,
    *,
    repeat: int = 3,
    mode: Mode = Mode.OFFLINE,
    at_once: int = 8,
    goal: Goal = NO_GOAL,
    alone: Mapping[int, Sequence[int]] = {},
    told: Callable[[], None] = lambda: None,
) -> Iterator[Trial]:
    """Runs all contenders, one after the other, `repeat` times. `told` is called for each query that is done."""
    settings = {one.name: settings_of(config, loaded, one) for one in some}
    longest = min(found.max_model_len for found in settings.values())
    check_lengths(workload, longest)
    prompts = workload.prompts(loaded.tokenizer.vocabulary, config.seed)
    for turn in range(repeat):
        for one in some:
            tally, timeline = Tally(), Timeline(math.inf)
            policy = POLICIES[settings[one.name].policy]()
            speed = machine_speed()
            client = start(loaded, settings[one.name], policy, one.name, [tally, timeline])
            try:
                _warm_up(client, len(prompts[0]), loaded.tokenizer.vocabulary)
                tally.slots, tally.preemptions, tally.kv_bytes_most = Slots(), 0, 0
                began = monotonic()
                run = drive(client, workload, prompts, monotonic, mode=mode, at_once=at_once, told=told)
            finally:
                client.close()
            # Half of it from before the run and half from after: what the machine did meanwhile lies between.
            speed = math.sqrt(speed * machine_speed())
            found = figures(
                run,
                tally.slots,
                preemptions=tally.preemptions,
                kv_bytes_most=tally.kv_bytes_most,
                goal=goal,
                alone=dict(alone),
                machine_speed=speed,
            )
            yield Trial(one.name, turn, found, _picture(tally, timeline, began))


def by_themselves(
    loaded: Loaded, config: Config, workload: Workload, count: int, told: Callable[[], None] = lambda: None
) -> dict[int, list[int]]:
    """Tokens of `count` queries of the workload, spread over it, each alone in an engine of one row."""
    settings = settings_of(config, loaded, Contender("alone", {"policy": "orca", "max_batch_size": "1"}))
    check_lengths(workload, settings.max_model_len)
    numbers = workload.part(count)
    prompts = workload.prompts(loaded.tokenizer.vocabulary, config.seed)
    client = start(loaded, dataclasses.replace(settings, prefix_cache=False), POLICIES["orca"](), "alone")
    try:
        part = workload.only(numbers)
        asked = [prompts[number] for number in numbers]
        run = drive(client, part, asked, monotonic, mode=Mode.CLOSED, at_once=1, told=told)
    finally:
        client.close()
    return {number: heard.tokens for number, heard in zip(numbers, run.heard, strict=True)}


def right_answers(
    loaded: Loaded, config: Config, one: Contender, count: int, told: Callable[[], None] = lambda: None
) -> dict[str, list[bool]]:
    """Whether the built-in model answers each of `count` held-out questions of each task rightly, greedily."""
    settings = settings_of(config, loaded, one)
    asked = [(task, question) for task in CHECKABLE_TASKS for question in questions(task, count, config.seed)]
    client = start(loaded, settings, POLICIES[settings.policy](), one.name)
    params = SamplingParams(temperature=0, max_tokens=LONGEST_ANSWER)
    try:
        chats = [client.tokenizer.chat([{"role": "user", "content": question.text}]) for _, question in asked]
        queries = [client.queries(chat, params)[0] for chat in chats]
        texts = dict.fromkeys((query.id for query in queries), "")
        for update in client.run(queries):
            texts[update.query_id] += update.text
            if update.finish_reason is not None:
                told()
    finally:
        client.close()
    right: dict[str, list[bool]] = {task: [] for task in CHECKABLE_TASKS}
    for (task, question), text in zip(asked, texts.values(), strict=True):
        right[task].append(bool(check(question.text, text)))
    return right


def machine_speed() -> float:
    """How fast the machine is just now: the geometric mean of what it reads (10 GB/s) and multiplies (100 GFLOP/s).

    Others' work and clocks that change from hour to hour are in it, and nothing of baton's.
    """
    memory, square = torch.ones(2**24), torch.ones(512, 512)
    reads = statistics.median(_seconds(memory.sum) for _ in range(15))
    products = statistics.median(_seconds(lambda: square @ square) for _ in range(61))
    return math.sqrt((memory.nbytes / reads / 1e10) * (2 * 512**3 / products / 1e11))


def _seconds(work: Callable[[], object]) -> float:
    began = monotonic()
    work()
    return monotonic() - began


def about_machine() -> dict[str, Any]:
    versions = f"baton {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "processor": _processor(),
        "system": platform.system(),
        "versions": versions,
    }


def _processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _warm_up(client: Client, tokens: int, vocabulary: int) -> None:
    """The first forward of a process touches memory that others find warm.

    Its prompt begins as no other does, so that nobody finds it in the prefix store.
    """
    warm = Workload("warm-up", (Ask(0.0, tokens, WARM_UP_TOKENS),))
    drive(client, warm, warm.prompts(vocabulary, seed=-1), monotonic)


def _picture(tally: Tally, timeline: Timeline, began: float) -> Picture:
    """Of what came after `began`, counted from there."""
    stays = [
        Stay(one.kind, one.lane, one.began - began, one.ended - began)
        for one in timeline.since(0, math.inf).stays
        if one.began >= began and one.ended is not None
    ]
    return Picture(tuple(stays), merged(tally.moments, began))


def check_lengths(workload: Workload, longest: int) -> None:
    """Raises InvalidValue where a query is longer than the context."""
    whole = workload.whole_prompts()
    for number, (ask, prompt) in enumerate(zip(workload.asks, whole, strict=True)):
        if prompt + ask.answer_tokens > longest:
            message = (
                f"query {number} of the workload has {prompt} + {ask.answer_tokens} tokens, the context {longest}: "
                "clip it with --max-prompt and --max-answer"
            )
            raise InvalidValue(message, param="workload")
