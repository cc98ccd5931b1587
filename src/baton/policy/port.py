"""What a policy sees and what it returns."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

from baton.core.footprint import NOTHING, Footprint
from baton.core.query import BACKGROUND, State
from baton.core.step import ALL_PENDING, Chunk, Feeding, Traits

GUARANTEED_TOKENS = 64
"""A query may generate so many tokens after each insertion before it may lose its row for lack of memory."""


@dataclass(frozen=True, slots=True)
class QueryView:
    """One live query as a policy sees it.

    `arrived` is a time on the clock of `View.now`. `cached`, `generated` and `limit_tokens` (the most it may generate)
    are tokens; `since_insert` is how many it has generated since it last got a row. `swapped_out`: its keys and values
    are kept outside all rows. `bytes_reserved`: what it takes in a row when it has generated all that it may.
    """

    id: str
    state: State
    prompt_tokens: int
    cached: int
    generated: int
    arrived: float
    priority: int
    deadline: float | None
    bytes_reserved: int
    limit_tokens: int
    since_insert: int = 0
    swapped_out: bool = False
    user: str = ""

    @property
    def pending(self) -> int:
        """Tokens left to feed before the next one can be drawn."""
        return self.prompt_tokens + self.generated - self.cached

    @property
    def background(self) -> bool:
        """Whether it waits for all others."""
        return self.priority == BACKGROUND


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured seconds, on the high side. `step_seconds`: one decode step of the batch as it is.

    A fill takes `fill_fixed_seconds`, for each token `fill_token_seconds`, and for each token and each column that it
    attends to `fill_column_seconds`. `fill_tokens`: the largest fill among those measured. None before the first.
    `chosen_share`: each token chooses that share of the experts, 0 without experts. Then a fill also takes the share of
    `fill_experts_seconds` that somebody chose (`share_chosen`), because only those experts are read.
    `step_seconds_by_rows`: a decode step of so many running rows, for each number that occurred, fewest first.
    """

    step_seconds: float | None = None
    fill_token_seconds: float | None = None
    fill_fixed_seconds: float = 0.0
    fill_column_seconds: float = 0.0
    fill_tokens: int = 0
    step_seconds_by_rows: tuple[tuple[int, float], ...] = ()
    chosen_share: float = 0.0
    fill_experts_seconds: float = 0.0

    def share_chosen(self, tokens: float) -> float:
        """The share of experts that at least one of so many tokens chooses, if each chooses evenly."""
        return 1.0 - math.pow(1.0 - self.chosen_share, tokens)

    def step_at(self, rows: int) -> float | None:
        """Seconds of a step of so many rows, interpolated between the nearest measured numbers; None before the first.

        For fewer rows than were measured it returns their part of the fewest, which is hopeful: a policy then tries so
        few, and measures them. For more rows it extends the last line.
        """
        points = self.step_seconds_by_rows
        if not points:
            return self.step_seconds
        fewest, seconds = points[0]
        if rows <= fewest or len(points) == 1:
            return seconds * min(1.0, rows / fewest)
        at = next((at for at, (seen, _) in enumerate(points) if rows <= seen), len(points) - 1)
        (low, before), (high, after) = points[at - 1], points[at]
        return max(0.0, before + (rows - low) * (after - before) / (high - low))

    def chunk_seconds(self, tokens: int, cached: int, beside: int = 0) -> float:
        """What a chunk of a query with so many cached tokens adds to a fill of `beside` other tokens."""
        experts = self.fill_experts_seconds * (self.share_chosen(beside + tokens) - self.share_chosen(beside))
        each = (self.fill_token_seconds or 0.0) + self.fill_column_seconds * (cached + tokens / 2)
        return tokens * each + experts

    def tokens_within(self, seconds: float, cached: int, beside: int = 0) -> int:
        """The largest chunk that adds no more seconds than that to a fill of `beside` other tokens."""
        if seconds <= 0:
            return 0
        most = self._tokens_without_experts(seconds, cached)
        if not self.fill_experts_seconds or self.chunk_seconds(most, cached, beside) <= seconds:
            return most
        # The cost only grows with the tokens: the last of them that fits is found by halving.
        return (
            bisect.bisect_right(range(most), seconds, key=lambda tokens: self.chunk_seconds(tokens, cached, beside)) - 1
        )

    def _tokens_without_experts(self, seconds: float, cached: int) -> int:
        linear = (self.fill_token_seconds or 0.0) + self.fill_column_seconds * cached
        # The root of column/2 n^2 + linear n = seconds, in a form that also holds if the quadratic term is 0.
        root = math.sqrt(linear**2 + 2 * self.fill_column_seconds * seconds)
        return int(2 * seconds / max(linear + root, 1e-12))


NO_COSTS = Costs()
"""Before anything was measured."""


@dataclass(frozen=True, slots=True)
class View:
    """The engine at the start of an iteration. Queries of each state are in the order of their arrival.

    Background queries (`core/query.py`) come behind all others.

    `rows`: rows of the batch; `max_rows`: the most it may have. `held_rows`: rows of finished queries that the plan
    before asked to hold. `prefill_room`: how many more segments the prefiller takes. `bytes_left`: of the budget, after
    what all queries that are prefilling, ready or running may still grow to. `bytes_budget`: what all rows together may
    take now; `held_bytes`: what held rows take of it; `swap_left`: free bytes for swapped-out queries, below 0 if some
    of them must make room. `footprint`: of one query. `whole_prompts`: this model's prompts cannot be fed in chunks,
    and a chunk feeds everything that is pending. `guaranteed_tokens`: see GUARANTEED_TOKENS. `answer_share`: nine of
    ten queries that finished lately had generated no more than this share of their limit.
    """

    now: float
    rows: int
    max_rows: int
    held_rows: int
    prefill_room: int
    bytes_left: int
    prefill_chunk: int | None
    max_stall_seconds: float
    costs: Costs
    waiting: Sequence[QueryView]
    prefilling: Sequence[QueryView]
    ready: Sequence[QueryView]
    running: Sequence[QueryView]
    footprint: Footprint = NOTHING
    bytes_budget: int = 0
    swap_left: int = 0
    whole_prompts: bool = False
    held_bytes: int = 0
    guaranteed_tokens: int = GUARANTEED_TOKENS
    answer_share: float = 1.0

    @property
    def swapped_out(self) -> list[QueryView]:
        """Queries that were running and are kept outside all rows."""
        return [query for query in self.ready if query.swapped_out]

    @property
    def in_rows(self) -> list[QueryView]:
        """All queries with a row of the batch or of the prefiller."""
        return [*self.prefilling, *(query for query in self.ready if not query.swapped_out), *self.running]

    def protected(self, query: QueryView) -> bool:
        """Whether it may not yet lose its row for lack of memory."""
        return query.state is not State.RUNNING or query.since_insert < self.guaranteed_tokens

    def committed(self, query: QueryView) -> int:
        """Bytes that must be left to it in a row: after this step, and until it has generated its guaranteed tokens."""
        return self._bytes(query, _at_insertion(query) + max(0, self.guaranteed_tokens - query.since_insert))

    def admitted(self, queries: Sequence[QueryView], most: int) -> list[QueryView]:
        """The first of these, waiting or swapped out, that may have memory; at most `most`, and none overtakes another.

        Optimistic, with two guards: all queries that then have rows can generate another `guaranteed_tokens` at once;
        and everything that they and swapped-out queries are expected to need fits budget and swap together, so that
        nothing need be forgotten.
        """
        if most <= 0 or not queries:
            return []
        soon = self.bytes_budget - self.held_bytes - sum(map(self._soon, self.in_rows))
        later = self.bytes_budget - self.held_bytes + self.swap_left - sum(map(self._expected, self.in_rows))
        later -= sum(self._expected(query) - self.footprint.of(query.cached) for query in self.swapped_out)
        chosen: list[QueryView] = []
        for query in queries[:most]:
            soon -= self._soon(query)
            later -= 0 if query.swapped_out else self._expected(query)
            # What a returning query will need is in `later` already; it makes no progress outside.
            if soon < 0 or (later < 0 and not query.swapped_out):
                break
            chosen.append(query)
        return chosen

    def _soon(self, query: QueryView) -> int:
        return self._bytes(query, _at_insertion(query) + self.guaranteed_tokens)

    def _expected(self, query: QueryView) -> int:
        usual = math.ceil(query.limit_tokens * self.answer_share)
        return self._bytes(query, max(usual, _at_insertion(query) + self.guaranteed_tokens))

    def _bytes(self, query: QueryView, generated: int) -> int:
        return self.footprint.of(query.prompt_tokens + min(generated, query.limit_tokens))

    def fitting(self, queries: Sequence[QueryView], most: int) -> list[QueryView]:
        """The first of these that the byte budget admits together; at most `most`, and none overtakes another.

        Ready queries are in the budget already.
        """
        chosen: list[QueryView] = []
        left = self.bytes_left
        for query in queries[: max(most, 0)]:
            left -= query.bytes_reserved if query.state is State.WAITING else 0
            if left < 0:
                break
            chosen.append(query)
        return chosen


def _at_insertion(query: QueryView) -> int:
    """What it has generated, or will have when it is inserted: a prefill draws a token too."""
    return query.generated + (query.state in (State.WAITING, State.PREFILLING))


@dataclass(frozen=True, slots=True)
class Plan:
    """The next iteration, carried out in this order: `forget`, `detach`, `resize`, `prefill`, `insert`, a step.

    `detach` names running queries; they are swapped out, or forgotten if `forget` names them too. `reasons` says in a
    word why queries lose their row ("memory", "priority"); "policy" for those that it does not name. `prefill` may name
    waiting queries; `insert` may name waiting ones (they are fed inside the batch), ready ones, and those that
    `prefill` makes ready. The step feeds each row up to `feed` tokens, laid out as `how` says; without rows there is no
    step. `fused`: if the prefiller can, `prefill` is fed in the step, one forward for both; the next plan can insert
    what becomes ready by it. `hold_finished`: rows of finished queries stay in the batch until all are finished. `why`
    is for people: one short sentence.
    """

    detach: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()
    resize: int | None = None
    prefill: tuple[Chunk, ...] = ()
    insert: tuple[str, ...] = ()
    feed: int = 1
    how: Feeding = Feeding.RAGGED
    fused: bool = False
    hold_finished: bool = False
    why: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)


def victims_first(running: Sequence[QueryView]) -> list[QueryView]:
    """The order in which queries lose rows: the least urgent first, and of these the latest to arrive."""
    return sorted(reversed(running), key=lambda query: (-query.priority, -query.arrived))


class Policy(Protocol):
    """One class with one method; see docs/policies.md.

    It may have the attributes of `Traits`; missing ones have the defaults there. Without "priority" in `honours` a
    priority is refused. A query whose deadline passes is given up under every policy.
    """

    def plan(self, view: View) -> Plan: ...


def traits(policy: Policy) -> Traits:
    """Returns the traits that this policy declares."""
    said = {known.name: getattr(policy, known.name) for known in fields(Traits) if hasattr(policy, known.name)}
    return Traits(**{**said, "honours": frozenset(said.get("honours", ()))})


__all__ = [
    "ALL_PENDING",
    "GUARANTEED_TOKENS",
    "Chunk",
    "Costs",
    "Feeding",
    "Plan",
    "Policy",
    "QueryView",
    "Traits",
    "View",
    "traits",
    "victims_first",
]
