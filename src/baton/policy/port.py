"""What a policy sees and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from baton.footprint import NOTHING, Footprint
from baton.query import State
from baton.work import ALL_PENDING, Chunk, Feeding


@dataclass(frozen=True, slots=True)
class Standing:
    """How one live query stands.

    `cached`, `generated` and `limit_tokens` (the most it may generate) are tokens; `since_insert` is how many it has
    generated since it was last given a row. `set_aside`: its keys and values are kept outside all rows.
    `bytes_reserved` is what it takes in a row when it has generated all that it may.
    """

    id: str
    state: State
    prompt_tokens: int
    cached: int
    generated: int
    waited_seconds: float
    priority: int
    deadline: float | None
    bytes_reserved: int
    limit_tokens: int
    since_insert: int = 0
    set_aside: bool = False
    user: str = ""

    @property
    def pending(self) -> int:
        """Tokens left to feed before the next one can be drawn."""
        return self.prompt_tokens + self.generated - self.cached


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, measured while running. `step_seconds`: one decode step as the batch is; `fill_token_seconds`: one
    prefilled token; None before the first measurement."""

    step_seconds: float | None = None
    fill_token_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """The engine at the start of an iteration. Queries of each state stand in the order of their arrival.

    `rows`: the batch has so many; `max_rows`: it may have so many. `held_rows`: rows of finished queries that the plan
    before asked to hold. `prefill_room`: how many more segments the prefiller takes. `bytes_left`: of the budget, after
    what all queries that are prefilling, ready or running may still grow to. `bytes_budget`: what all rows together may
    take now; `pool_left`: bytes that are free for queries set aside. `footprint`: what one query takes.
    `whole_prompts`: this model's prompts cannot be fed in chunks, a chunk feeds all that is pending.
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
    waiting: Sequence[Standing]
    prefilling: Sequence[Standing]
    ready: Sequence[Standing]
    running: Sequence[Standing]
    footprint: Footprint = NOTHING
    bytes_budget: int = 0
    pool_left: int = 0
    whole_prompts: bool = False

    def fitting(self, queries: Sequence[Standing], most: int) -> list[Standing]:
        """The first of these that the byte budget admits together, at most `most`, none overtaking another.

        Ready ones are in the budget already.
        """
        chosen: list[Standing] = []
        left = self.bytes_left
        for query in queries[: max(most, 0)]:
            left -= query.bytes_reserved if query.state is State.WAITING else 0
            if left < 0:
                break
            chosen.append(query)
        return chosen


@dataclass(frozen=True, slots=True)
class Plan:
    """The next iteration, carried out in this order: `detach`, `forget`, `resize`, `prefill`, `insert`, a step.

    `prefill` may name waiting queries; `insert` waiting ones (they are fed inside the batch), ready ones, and those
    that `prefill` makes ready. The step feeds each row up to `feed` tokens, laid out as `how` says; no rows, no step.
    `fused`: where the prefiller can, `prefill` rides in the step, one forward for both; what becomes ready by it can be
    inserted by the next plan.
    `hold_finished`: rows of finished queries stay in the batch until all are finished.
    `why` is for people: one short sentence.
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


class Policy(Protocol):
    """One class with one method; see CONTRIBUTING.md, "a policy of your own"."""

    def plan(self, view: View) -> Plan: ...


__all__ = ["ALL_PENDING", "Chunk", "Costs", "Feeding", "Plan", "Policy", "Standing", "View"]
