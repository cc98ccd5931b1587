"""`baton simulate`: workloads and policies against measured costs, without a device.

The engine, the policies and the accounting are the real ones; only the forward is a number of seconds, by which a clock
is moved (`testing/fake_batch.py`). So what cannot be run here can be tried: thousands of queries, other costs, more
rows.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from tqdm import tqdm

from baton.bench.commands import workload_of
from baton.bench.costmodel import MeasuredCosts, read_costs
from baton.bench.drive import Mode, Response, Run
from baton.bench.figures import NO_GOAL, Figures, Goal, figures
from baton.bench.table import report, table_of
from baton.bench.workload import Workload
from baton.core.config import Config
from baton.core.errors import SettingError
from baton.core.events import Update
from baton.core.files import write_text
from baton.core.footprint import Columns, Footprint
from baton.core.query import Query, SamplingParams
from baton.core.settings import Facts, Settings, resolve
from baton.core.text import TextStream
from baton.engine.engine import Engine
from baton.engine.output import OutputProcessor
from baton.kv.budget import Budget
from baton.kv.prefix import PrefixStore
from baton.measure.contenders import changed, contenders
from baton.measure.trials import RunCounts, check_lengths
from baton.policy.memory_guard import MemoryGuard
from baton.policy.port import traits
from baton.policy.table import policy_named
from baton.testing.clock import ManualClock
from baton.testing.fake_batch import FakeBatch, FakeDevice, FakePrefill

_PAUSE_SECONDS = 0.002  # the engine's loop also pauses if a policy has nothing to do
# Prompts are random token ids, so that they share only what the workload says; all answers are one word.
_VOCABULARY = 50_000
_WORD = 7


class _Silent:
    """A decoder of tokens that mean nothing."""

    def step(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class Simulation:
    """One engine on a simulated device."""

    def __init__(self, settings: Settings, costs: MeasuredCosts, footprint: Footprint) -> None:
        self.clock = ManualClock()
        self.counts = RunCounts()
        self._query_seconds = costs.query_seconds
        device = FakeDevice(
            say=lambda tokens: _WORD,
            costs=costs,
            clock=self.clock,
            columns=settings.max_model_len,
            footprint=footprint,
        )
        self.engine = Engine(
            batch=FakeBatch(device, settings.max_rows),
            prefiller=FakePrefill(device, settings.max_rows + 1),
            policy=MemoryGuard(policy_named(settings.policy)),
            settings=settings,
            outputs=OutputProcessor(lambda query: TextStream(_Silent()), ()),
            footprint=footprint,
            stamp=device.stamp,
            budget=Budget(
                settings.kv_bytes,
                settings.swap_bytes,
                floor_bytes=footprint.of(settings.max_model_len),
                free_bytes=lambda: 2**62,
                clock=self.clock,
            ),
            clock=self.clock,
            sinks=[self.counts],
            prefix_store=_prefix_store(footprint) if settings.prefix_cache else None,
        )

    def run(
        self,
        workload: Workload,
        *,
        mode: Mode = Mode.OFFLINE,
        at_once: int = 8,
        on_done: Callable[[], object] = lambda: None,
    ) -> Run:
        """As `bench.drive.drive`, in no real time. `on_done` is called when a query is done."""
        asks, clock = workload.asks, self.clock
        prompts = workload.prompts(_VOCABULARY, self.engine.settings.seed)
        responses = [Response(ask.at if mode is Mode.TIMED else 0.0) for ask in asks]
        coming = deque(number for number, ask in enumerate(asks) if ask.after is None)
        later = {ask.after: number for number, ask in enumerate(asks) if ask.after is not None}
        most = at_once if mode is Mode.CLOSED else self.engine.settings.max_waiting
        live = 0

        def take(updates: list[Update]) -> None:
            nonlocal live
            for update in updates:
                one, number = responses[int(update.query_id)], int(update.query_id)
                one.tokens += update.token_ids
                one.times += [clock.now] * len(update.token_ids)
                one.usage, one.error = update.usage or one.usage, update.error or one.error
                if update.finish_reason is None:
                    continue
                live -= 1
                one.cached_tokens = update.usage.cached_tokens if update.usage else 0
                on_done()
                if number in later:
                    turn = later[number]
                    responses[turn].asked = clock.now
                    prompts[turn] = [*prompts[number], *one.tokens, *prompts[turn]]
                    coming.appendleft(turn)

        while coming or self.engine.busy:
            while coming and (responses[coming[0]].asked <= clock.now if mode is Mode.TIMED else live < most):
                number = coming.popleft()
                if mode is not Mode.TIMED:
                    responses[number].asked = clock.now
                responses[number].prompt_tokens = len(prompts[number])
                query = _query(number, prompts[number], asks[number].answer_tokens, clock.now)
                clock.advance(self._query_seconds)
                self.engine.accept(query, take)
                live += 1
            if not self.engine.busy:
                clock.now = max(clock.now, responses[coming[0]].asked)
                continue
            computed = self.engine.iterate()
            self.engine.flush()
            if not computed and self.engine.busy:
                clock.advance(_PAUSE_SECONDS)
        return Run(max((one.times[-1] for one in responses if one.times), default=0.0), responses)


def _prefix_store(footprint: Footprint) -> PrefixStore:
    """As `kv.prefix.prefix_store`: rows with states cannot be cut, others only until a window is full."""
    window = min((columns.most for columns in footprint.columns if columns.most), default=sys.maxsize)
    return PrefixStore(0, divisible_tokens=0 if footprint.state_bytes else window)


def _query(number: int, prompt: Sequence[int], answer_tokens: int, now: float) -> Query:
    params = SamplingParams(temperature=0, max_tokens=answer_tokens, ignore_eos=True)
    return Query(
        id=str(number),
        prompt=tuple(prompt),
        params=params,
        seed=0,
        limit_tokens=answer_tokens,
        arrived=now,
    )


def simulated(
    settings: Settings,
    costs: MeasuredCosts,
    footprint: Footprint,
    workload: Workload,
    *,
    mode: Mode = Mode.OFFLINE,
    at_once: int = 8,
    goal: Goal = NO_GOAL,
    on_done: Callable[[], object] = lambda: None,
) -> Figures:
    """The figures that `baton bench` would have measured."""
    simulation = Simulation(settings, costs, footprint)
    run = simulation.run(workload, mode=mode, at_once=at_once, on_done=on_done)
    counts = simulation.counts
    return figures(run, counts.slots, preemptions=counts.preemptions, kv_bytes_most=counts.kv_bytes_most, goal=goal)


def run_simulate(config: Config, asked: dict[str, Any]) -> None:
    """Runs the contenders one after the other and shows their figures. Raises SettingError."""
    costs, more = read_costs(asked["costs"])
    shape, context = _shape(more, asked["costs"])
    facts = Facts(context, shape, asked["memory"], "cpu", "float32", 1, True)
    some = contenders(asked["policies"].split(","), asked["vary"])
    workload = workload_of(asked)
    settings = {one.name: _settings(changed(config, one), facts) for one in some}
    check_lengths(workload, min(one.max_model_len for one in settings.values()))
    runs: dict[str, list[Figures]] = {}
    with tqdm(
        total=len(some) * len(workload.asks), unit="query", file=sys.stderr, disable=not sys.stderr.isatty()
    ) as bar:
        for one in some:
            bar.set_postfix_str(one.name)
            goal = Goal(asked["goal_first"], asked["goal_token"], asked["goal_gap"])
            figures = simulated(
                settings[one.name],
                costs,
                shape,
                workload,
                mode=Mode(asked["mode"]),
                at_once=asked["at_once"],
                goal=goal,
                on_done=bar.update,
            )
            runs[one.name] = [figures]
    console = Console(highlight=False)
    console.print(f"{workload.about}\nsimulated with the costs of {costs.about or asked['costs']}")
    console.print(table_of(runs))
    if asked["json_file"]:
        about = {"model": "simulated", "dtype": "none", "workload": workload.about}
        shown = {name: dataclasses.asdict(one) for name, one in settings.items()}
        write_text("--json", asked["json_file"], json.dumps(report(about, runs, shown)), param="json")


def _settings(config: Config, facts: Facts) -> Settings:
    return resolve(config, facts, traits(policy_named(config.policy)))


def _shape(more: Mapping[str, Any], path: str) -> tuple[Footprint, int]:
    """What a query takes in memory, and the context, as `baton tune` wrote them."""
    try:
        shape = more["footprint"]
        columns = tuple(Columns(**one) for one in shape["columns"])
        return Footprint(columns, int(shape["state_bytes"]), int(shape["page"])), int(more["context_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{path} has no footprint and context_tokens as baton tune writes: {error!r}") from None
