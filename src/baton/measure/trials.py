"""One workload through several settings on one loaded model: alternated, repeated, answers compared with alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from baton.bench.drive import Mode, Run, drive
from baton.bench.figures import NO_GOAL, Figures, Goal, figures
from baton.bench.interleave import NO_TURNS, OwnTime, Turns
from baton.bench.lockstep import drive_in_turn
from baton.bench.picture import Moment, Picture, RowInterval, merged
from baton.bench.workload import Ask, Workload
from baton.builtin.tasks import CHECKABLE_TASKS, check, questions
from baton.compose import make_engine, start
from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.errors import InvalidValue
from baton.core.events import Event, IterationDone, QueryMoved, Slots
from baton.core.query import SamplingParams, State
from baton.core.settings import Settings, resolve
from baton.loader.facts import facts_of
from baton.loader.loaded import Loaded
from baton.measure.contenders import Contender, changed
from baton.measure.testbed import machine_speed
from baton.observe.timeline import Timeline
from baton.policy.port import traits
from baton.policy.table import policy_named

WARM_UP_TOKENS = 8
LONGEST_ANSWER = 400


@dataclass(slots=True)
class RunCounts:
    """A sink: sums over a run's iterations."""

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


def settings_of(config: Config, loaded: Loaded, contender: Contender) -> Settings:
    """Raises SettingError."""
    asked = changed(config, contender)
    return resolve(asked, facts_of(loaded), traits(policy_named(asked.policy)))


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
    on_done: Callable[[], None] = lambda: None,
    turns: Turns | None = None,
) -> Iterator[Trial]:
    """Runs all contenders, one after the other, `repeat` times. `on_done` is called for each query that is done.

    `turns`: with another process that makes as many runs; else each run has the whole machine.
    """
    settings = {one.name: settings_of(config, loaded, one) for one in some}
    longest = min(run_figures.max_model_len for run_figures in settings.values())
    check_lengths(workload, longest)
    prompts = workload.prompts(loaded.tokenizer.vocabulary, config.seed)
    for turn in range(repeat):
        for one in some:
            run = _ContenderRun(loaded, settings[one.name], one.name, workload, prompts, mode, at_once, on_done)
            done = run.by_threads() if turns is None else run.in_turn(turns)
            run_figures = figures(
                done.run,
                done.counts.slots,
                preemptions=done.counts.preemptions,
                kv_bytes_most=done.counts.kv_bytes_most,
                goal=goal,
                alone=dict(alone),
                machine_speed=done.machine_speed,
                pair=done.pair,
            )
            yield Trial(one.name, turn, run_figures, done.picture)


@dataclass(frozen=True, slots=True)
class _Done:
    run: Run
    counts: RunCounts
    picture: Picture
    machine_speed: float = 1.0
    pair: str = ""


@dataclass(frozen=True, slots=True)
class _ContenderRun:
    """One run of a contender, on an engine of its own."""

    loaded: Loaded
    settings: Settings
    name: str
    workload: Workload
    prompts: Sequence[Sequence[int]]
    mode: Mode
    at_once: int
    on_done: Callable[[], None]

    def by_threads(self) -> _Done:
        """Runs the queries as real ones are run."""
        counts, timeline = RunCounts(), Timeline(math.inf)
        speed = machine_speed()
        policy = policy_named(self.settings.policy)
        client = start(self.loaded, self.settings, policy, self.name, [counts, timeline])
        try:
            warm, its_prompts = self._warm_up()
            drive(client, warm, its_prompts, monotonic)
            counts.slots, counts.preemptions, counts.kv_bytes_most = Slots(), 0, 0
            began = monotonic()
            run = drive(
                client,
                self.workload,
                self.prompts,
                monotonic,
                mode=self.mode,
                at_once=self.at_once,
                on_done=self.on_done,
            )
        finally:
            client.close()
        # Half of it from before the run and half from after, because the machine's speed may change in between.
        return _Done(run, counts, _picture(counts, timeline, began), math.sqrt(speed * machine_speed()))

    def in_turn(self, turns: Turns) -> _Done:
        """Runs without threads, on a clock that stands still while the other process computes."""
        counts, timeline, clock = RunCounts(), Timeline(math.inf), OwnTime()
        policy = policy_named(self.settings.policy)
        engine = make_engine(self.loaded, self.settings, policy, [counts, timeline], clock=clock)
        warm, its_prompts = self._warm_up()
        drive_in_turn(engine, warm, its_prompts, clock, NO_TURNS, at_once=1)
        pair = turns.begin()
        counts.slots, counts.preemptions, counts.kv_bytes_most = Slots(), 0, 0
        began = clock()
        at_once = self.at_once if self.mode is Mode.CLOSED else self.settings.max_waiting
        run = drive_in_turn(engine, self.workload, self.prompts, clock, turns, at_once=at_once, on_done=self.on_done)
        return _Done(run, counts, _picture(counts, timeline, began), pair=pair)

    def _warm_up(self) -> tuple[Workload, list[list[int]]]:
        """The first forward of a process touches cold memory.

        Its prompt begins like no other, so that it never matches in the prefix store.
        """
        warm = Workload("warm-up", (Ask(0.0, len(self.prompts[0]), WARM_UP_TOKENS),))
        return warm, warm.prompts(self.loaded.tokenizer.vocabulary, seed=-1)


def by_themselves(
    loaded: Loaded, config: Config, workload: Workload, count: int, on_done: Callable[[], None] = lambda: None
) -> dict[int, list[int]]:
    """Tokens of `count` queries of the workload, spread over it, each alone in an engine of one row."""
    settings = settings_of(config, loaded, Contender("alone", {"policy": "orca", "max_batch_size": "1"}))
    check_lengths(workload, settings.max_model_len)
    numbers = workload.part(count)
    prompts = workload.prompts(loaded.tokenizer.vocabulary, config.seed)
    client = start(loaded, dataclasses.replace(settings, prefix_cache=False), policy_named("orca"), "alone")
    try:
        part = workload.only(numbers)
        asked = [prompts[number] for number in numbers]
        run = drive(client, part, asked, monotonic, mode=Mode.CLOSED, at_once=1, on_done=on_done)
    finally:
        client.close()
    return {number: responses.tokens for number, responses in zip(numbers, run.responses, strict=True)}


def right_answers(
    loaded: Loaded, config: Config, one: Contender, count: int, on_done: Callable[[], None] = lambda: None
) -> dict[str, list[bool]]:
    """Whether the built-in model answers each of `count` held-out questions of each task rightly, greedily."""
    settings = settings_of(config, loaded, one)
    asked = [(task, question) for task in CHECKABLE_TASKS for question in questions(task, count, config.seed)]
    client = start(loaded, settings, policy_named(settings.policy), one.name)
    params = SamplingParams(temperature=0, max_tokens=LONGEST_ANSWER)
    try:
        chats = [client.tokenizer.chat([{"role": "user", "content": question.text}]) for _, question in asked]
        queries = [client.queries(chat, params)[0] for chat in chats]
        texts = dict.fromkeys((query.id for query in queries), "")
        for update in client.run(queries):
            texts[update.query_id] += update.text
            if update.finish_reason is not None:
                on_done()
    finally:
        client.close()
    right: dict[str, list[bool]] = {task: [] for task in CHECKABLE_TASKS}
    for (task, question), text in zip(asked, texts.values(), strict=True):
        right[task].append(bool(check(question.text, text)))
    return right


def _picture(counts: RunCounts, timeline: Timeline, began: float) -> Picture:
    """The picture of what came after `began`, with times from there."""
    intervals = [
        RowInterval(one.kind, one.lane, one.began - began, one.ended - began)
        for one in timeline.since(0, math.inf).intervals
        if one.began >= began and one.ended is not None
    ]
    return Picture(tuple(intervals), merged(counts.moments, began))


def check_lengths(workload: Workload, longest: int) -> None:
    """Raises InvalidValue if a query is longer than the context."""
    whole = workload.whole_prompts()
    for number, (ask, prompt) in enumerate(zip(workload.asks, whole, strict=True)):
        if prompt + ask.answer_tokens > longest:
            message = (
                f"query {number} of the workload has {prompt} + {ask.answer_tokens} tokens, the context {longest}: "
                "clip it with --max-prompt and --max-answer"
            )
            raise InvalidValue(message, param="workload")
