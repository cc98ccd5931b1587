"""What is computed, and its results: the terms that plans, batches and prefillers share."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from enum import StrEnum

from baton.core.events import Slots, TokenLogprobs

ALL_PENDING = 2**31
"""Feeds a row everything that it has left to feed."""
MEMORY = "memory"
"""A query loses its row because there is too little memory."""


class Feeding(StrEnum):
    """How a step's tokens are laid out for the model. A method of batching is a policy and one of these.

    PADDED: rows aligned to the longest, as batch-wise inference does. SELECTIVE: tokens flat for the linear layers,
    attention request by request (Orca, Yu et al., OSDI 2022, section 3). RAGGED: one token per row, rows of any length
    attended together if that is faster.
    """

    PADDED = "padded"
    SELECTIVE = "selective"
    RAGGED = "ragged"


@dataclass(frozen=True, slots=True)
class Traits:
    """What an engine must know of a policy before its first plan.

    Attributes:
        honours: Which of a query's "priority", "deadline" and "user" the policy honours.
        prompts_in_step: Prompts are fed in the running rows' step, never on a stream beside it.
        pads: Its steps are `Feeding.PADDED`: a row's columns are read as far as those of the longest row.
        selective: Its steps are `Feeding.SELECTIVE`, so rows cannot be aligned.
        keeps_prefixes: Prompts may be computed from stored prefixes.
    """

    honours: frozenset[str] = frozenset()
    prompts_in_step: bool = False
    pads: bool = False
    selective: bool = False
    keeps_prefixes: bool = True


NO_TRAITS = Traits()


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a forward computes: rows, token slots, and the columns that rows read.

    `single_columns`: columns of rows that were fed one token. `pairs`: for all other rows, each token with each column
    that it attends to. `finished`: how many of the rows belong to queries that were done before.
    """

    rows: int
    slots: int
    columns: int
    single_columns: int = 0
    pairs: float = 0.0
    finished: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Feed up to `tokens` more of this query's pending tokens."""

    query_id: str
    tokens: int


@dataclass(slots=True)
class StepOutput:
    """The result of a forward. `tokens`: the token drawn, by query; queries with more left to feed drew none.

    `failed`: queries that cannot go on, with the reason: their logits are not finite, or an operation for them raised.
    `infeasible`: queries that cannot go on as they were asked, which is their clients' fault. Both are still in and
    must be removed. `slots`: all token slots computed, by kind; `shares`: useful and idle slots of each query.
    `logprobs`: of the token drawn; `prompt_logprobs`: of the prompt tokens that follow those fed; for queries that ask.
    `beside`: prompts were computed beside it, which made it longer. `fill_seconds`: how long that took, if this output
    reports it.
    """

    tokens: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    infeasible: dict[str, str] = field(default_factory=dict)
    slots: Slots = field(default_factory=Slots)
    shares: dict[str, tuple[int, int]] = field(default_factory=dict)
    logprobs: dict[str, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    beside: bool = False
    fill_seconds: float | None = None

    @property
    def ended(self) -> Set[str]:
        """Queries that cannot go on."""
        return self.failed.keys() | self.infeasible.keys()

    def merge(self, part: StepOutput) -> None:
        """Adds the output of other queries, except `beside` and `fill_seconds`."""
        self.tokens |= part.tokens
        self.failed |= part.failed
        self.infeasible |= part.infeasible
        self.shares |= part.shares
        self.logprobs |= part.logprobs
        self.prompt_logprobs |= part.prompt_logprobs
        self.slots.add(part.slots)


def merged(parts: Iterable[StepOutput]) -> StepOutput:
    """Returns the output of several forwards of different queries."""
    whole = StepOutput()
    for part in parts:
        whole.merge(part)
    return whole
