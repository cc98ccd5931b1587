"""`baton check`: for this model, dtype and device, does each query give in any company what it gives alone?

The oracle is stock `generate` with stock attention, one query at a time, on the same weights before they are hooked.
Then the engine runs the same queries in each way that could change a result, and tokens and logits are compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from baton.compose import make_engine
from baton.core.config import ALIGNED, Config
from baton.core.errors import LoadError, Refused
from baton.core.events import Update
from baton.core.query import Query, SamplingParams
from baton.core.settings import Settings, resolve
from baton.engine.engine import Engine
from baton.kv.rectangle import is_lazy
from baton.loader.facts import facts_of
from baton.loader.loaded import Loaded
from baton.loader.oracle import Case, Oracle
from baton.loader.selfcheck import OTHER_EXPERTS, another_size
from baton.measure.scenarios import ROWS, SCENARIOS, Disturbed, Scenario, taken_out
from baton.policy.baton import Baton
from baton.policy.port import Policy, traits
from baton.policy.run_to_completion import RunToCompletion
from baton.sampling.sampler import Draw, Sampler


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one way of running. `difference`: of logits, relative to the largest logit of the query.

    `diverged`: query and position of the first different token, if the two were not a near tie. `ties`: queries whose
    tokens differ where the model itself hardly prefers one. `skipped`: why there was nothing to compare.
    """

    name: str
    what: str
    queries: int = 0
    tokens: int = 0
    difference: float = 0.0
    diverged: tuple[int, int] | None = None
    ties: int = 0
    evidence: str = ""
    skipped: str | None = None
    tolerance: float = 0.0

    @property
    def passed(self) -> bool:
        return self.skipped is not None or (self.diverged is None and self.difference <= self.tolerance)


SIZE = "size"
_OTHER_SIZE = "as many columns as the engine has, and another number: the same bits"
DETERMINISTIC = "deterministic"
_SAME_BITS = "--deterministic: the same bits in a crowd"


_Rows = dict[tuple[int, int], Tensor]
"""Logits by query and position."""


class _Keeping(Sampler):
    """Keeps each row of logits that is drawn from, by query and position."""

    sees_logits = True

    def __init__(self) -> None:
        super().__init__(end_ids=())
        self.kept: _Rows = {}

    def __call__(self, logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
        for row, draw in zip(logits, draws, strict=True):
            self.kept[draw.seed, len(draw.tokens)] = row.clone()
        return super().__call__(logits, draws)


class _Listening(Sampler):
    """Compares each row of logits that is drawn from with the oracle's; queries are told apart by their seeds."""

    sees_logits = True

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__(end_ids=())
        self._cases = cases
        self.differences: dict[tuple[int, int], float] = {}
        """By query and position behind its prompt."""

    def __call__(self, logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
        drawn = super().__call__(logits, draws)
        for row, draw in zip(logits, draws, strict=True):
            case, at = self._cases[draw.seed], len(draw.tokens) - draw.prompt_tokens
            # After a different token the two texts have nothing to compare.
            if tuple(draw.tokens[draw.prompt_tokens :]) == case.tokens[:at]:
                expected = case.logits[at].to(row.device)
                difference = float((row - expected).abs().max() / case.logits.abs().max())
                self.differences[draw.seed, at] = max(self.differences.get((draw.seed, at), 0.0), difference)
        return drawn

    def difference(self, *, choosing: bool) -> float:
        """The largest; with `choosing`, see `self_check`, that of the median token."""
        every = list(self.differences.values())
        largest = max(every, default=0.0)
        return statistics.median(every) if choosing and largest <= OTHER_EXPERTS else largest

    def at(self, query: int, position: int, *, choosing: bool) -> float:
        """How far off a token may be because it went to other experts than alone; 0 if it did not."""
        difference = self.differences.get((query, position), 0.0)
        return difference if choosing and difference <= OTHER_EXPERTS else 0.0


def check(loaded: Loaded, oracle: Oracle, config: Config) -> Iterator[Outcome]:
    """Runs every scenario and yields its result when it is done.

    In a rectangle as wide as the engine's; or, if its memory would be allocated at once, as wide as the texts are long.
    """
    longest = max(len(case.prompt) + oracle.answer for case in [*oracle.cases, *oracle.further, *oracle.long])
    columns = config.max_model_len if is_lazy(loaded.device) else str(longest)
    asked = replace(config, max_model_len=columns, max_batch_size=str(ROWS), policy="baton")
    settings = resolve(asked, facts_of(loaded))
    aligned = settings.shaping == ALIGNED
    for scenario in SCENARIOS:
        if aligned and traits(scenario.policy()).selective:
            yield Outcome(scenario.name, scenario.what, skipped="selective batching aligns no rows")
        else:
            yield _run(scenario, loaded, oracle, settings)
    yield _any_size(loaded, oracle, settings)
    # Last, because a forward keeps fixed shapes.
    if aligned:
        yield Outcome(DETERMINISTIC, _SAME_BITS, skipped="shapes of aligned rows change with the batch")
    else:
        yield _same_bits(loaded, oracle, replace(settings, deterministic=True, prefix_cache=False))


def _run(scenario: Scenario, loaded: Loaded, oracle: Oracle, settings: Settings) -> Outcome:
    cases = [*oracle.cases, *(oracle.further if scenario.prefixes else oracle.long if scenario.long else [])]
    if scenario.long and not oracle.long:
        return Outcome(scenario.name, scenario.what, skipped="the context, or --longest, has no room for one")
    policy, listening = scenario.policy(), _Listening(cases)
    held = replace(
        settings, max_rows=scenario.rows, prefill_chunk=scenario.chunk, prefix_cache=scenario.prefixes, policy="check"
    )
    engine = make_engine(loaded, held, policy, sampler=listening)
    answers: dict[str, list[int]] = {str(i): [] for i in range(len(cases))}

    def deliver(updates: list[Update]) -> None:
        for update in updates:
            if update.error is not None:
                raise Refused(f"query {update.query_id} failed: {update.error}")
            answers[update.query_id].extend(update.token_ids)

    queries = [_query(i, case) for i, case in enumerate(cases)]
    first = len(oracle.cases) if scenario.prefixes else len(cases)
    for some in (queries[:first], queries[first:]):
        _drive(engine, some, scenario.late, deliver)
    tolerance = max(loaded.tolerance, oracle.tolerance)
    outcome = _compared(scenario, cases, list(answers.values()), listening, tolerance, choosing=loaded.chooses_roughly)
    return _evident(outcome, scenario, policy, engine)


def _same_bits(loaded: Loaded, oracle: Oracle, settings: Settings) -> Outcome:
    """With fixed shapes: each query alone against all in a disturbed batch, bit by bit."""
    outcome = Outcome(DETERMINISTIC, _SAME_BITS, queries=len(oracle.cases))
    queries = [_query(i, case) for i, case in enumerate(oracle.cases)]
    try:
        alone = _kept(loaded, settings, Baton(), [[query] for query in queries])
        crowd = _kept(loaded, settings, Disturbed(Baton(), taken_out), [queries])
    except LoadError as error:
        return replace(outcome, skipped=error.message)
    return _bit_by_bit(outcome, oracle, alone, crowd)


def _any_size(loaded: Loaded, oracle: Oracle, settings: Settings) -> Outcome:
    """In rectangles of two sizes, everything else alike: bit by bit."""
    outcome = Outcome(SIZE, _OTHER_SIZE, queries=len(oracle.cases))
    queries = [_query(i, case) for i, case in enumerate(oracle.cases)]
    least = max(len(case.prompt) + oracle.answer for case in oracle.cases)
    columns = settings.max_model_len
    other = another_size(columns, least, loaded.geometry.windows)
    if other is None or settings.shaping == ALIGNED:
        return replace(outcome, skipped="there is no other size with the same rings, or rows are aligned")
    # This policy's batches do not depend on what steps cost.
    by_size = [
        _kept(loaded, replace(settings, max_model_len=size, prefix_cache=False), RunToCompletion(), [queries])
        for size in (columns, other)
    ]
    return replace(_bit_by_bit(outcome, oracle, *by_size), evidence=f"{columns} and {other}")


def _kept(loaded: Loaded, settings: Settings, policy: Policy, arriving: Sequence[Sequence[Query]]) -> _Rows:
    keeping = _Keeping()
    engine = make_engine(loaded, settings, policy, sampler=keeping)
    for some in arriving:
        _drive(engine, some, late=2, deliver=lambda updates: None)
    return keeping.kept


def _bit_by_bit(outcome: Outcome, oracle: Oracle, one: _Rows, another: _Rows) -> Outcome:
    other = [at for at in one if at not in another or not one[at].equal(another[at])]
    difference = max((float((one[at] - another[at]).abs().max()) for at in other if at in another), default=0.0)
    first = min(other, default=None)
    prompts = [len(case.prompt) for case in oracle.cases]
    diverged = None if first is None else (first[0], first[1] - prompts[first[0]])
    return replace(outcome, tokens=len(one), difference=difference, diverged=diverged)


def _query(index: int, case: Case) -> Query:
    count = len(case.tokens)
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    return Query(id=str(index), prompt=case.prompt, params=params, seed=index, limit_tokens=count, arrived=0.0)


def _drive(engine: Engine, queries: Sequence[Query], late: int, deliver: Callable[[list[Update]], None]) -> None:
    """Lets the queries arrive, and iterates until none is left."""
    waiting, turn = list(queries), 0
    while waiting or engine.busy:
        while waiting and turn >= late * (len(queries) - len(waiting)):
            engine.accept(waiting.pop(0), deliver)
        engine.iterate()
        engine.flush()
        turn += 1


def _compared(
    scenario: Scenario,
    cases: Sequence[Case],
    answers: Sequence[list[int]],
    listening: _Listening,
    tolerance: float,
    *,
    choosing: bool,
) -> Outcome:
    diverged, ties = None, 0
    for index, (case, tokens) in enumerate(zip(cases, answers, strict=True)):
        at = next((i for i, pair in enumerate(zip(tokens, case.tokens, strict=True)) if pair[0] != pair[1]), None)
        if at is None:
            continue
        best = case.logits[at].topk(2).values
        off = max(tolerance, listening.at(index, at, choosing=choosing))
        if float(best[0] - best[1]) <= 2 * off * float(case.logits.abs().max()):
            ties += 1
        elif diverged is None:
            diverged = (index, at)
    return Outcome(
        name=scenario.name,
        what=scenario.what,
        queries=len(cases),
        tokens=len(listening.differences),
        difference=listening.difference(choosing=choosing),
        diverged=diverged,
        ties=ties,
        tolerance=tolerance,
    )


def _evident(outcome: Outcome, scenario: Scenario, policy: Policy, engine: Engine) -> Outcome:
    """Says how often the thing to be checked took place. If it never did, nothing was shown."""
    if isinstance(policy, Disturbed):
        if not policy.moves:
            return replace(outcome, skipped="never took place: give longer answers (--tokens)")
        return replace(outcome, evidence=f"{policy.moves} times")
    if scenario.prefixes:
        reused = engine.lifecycle.prefix_cached_tokens
        if not reused:
            return replace(outcome, skipped="no prefix of this model's is reused")
        return replace(outcome, evidence=f"{reused} tokens reused")
    return outcome
