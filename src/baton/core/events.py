"""What happened, as frozen records: the engine emits them, sinks and clients get them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

from baton.core.origin import NO_ORIGIN, Origin
from baton.core.query import State
from baton.core.sampling import SamplingParams


@dataclass(slots=True)
class Slots:
    """Token slots that forwards computed, by what became of them, and the KV columns that attention read.

    A slot is one token position that went through the model's layers. `useful` slots are those that a query needed,
    once per token. All others are idle computation, by kind: `empty_row`: no query in the row; `finished_row`: its
    query was done; `padding`: a position that aligns a row with longer ones; `recomputed`: a token that had been
    computed before and was forgotten. `columns_needed` and `columns_padding` count KV columns read per row and forward.
    """

    useful: int = 0
    empty_row: int = 0
    finished_row: int = 0
    padding: int = 0
    recomputed: int = 0
    columns_needed: int = 0
    columns_padding: int = 0

    def add(self, other: Slots) -> None:
        for name in _SLOT_FIELDS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def idle(self) -> int:
        return self.empty_row + self.finished_row + self.padding + self.recomputed

    @property
    def idle_ratio(self) -> float:
        """1 - useful / all; 0 if nothing was computed."""
        total = self.useful + self.idle
        return self.idle / total if total else 0.0

    def by_kind(self) -> dict[str, int]:
        """The token slots alone, under the names of `baton_token_slots_total{kind}`."""
        return {kind: getattr(self, kind) for kind in SLOT_KINDS}


SLOT_KINDS = ("useful", "empty_row", "finished_row", "padding", "recomputed")
_SLOT_FIELDS = tuple(f.name for f in fields(Slots))


@dataclass(frozen=True, slots=True)
class Usage:
    """What one query took. Seconds are of the engine's clock.

    `cached_tokens`: prompt tokens that it did not have to compute, because an earlier query's text began with them.
    """

    prompt_tokens: int
    generated_tokens: int
    useful_slots: int
    idle_slots: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    first_token_seconds: float | None
    preemptions: int
    cached_tokens: int = 0

    @property
    def idle_ratio(self) -> float:
        total = self.useful_slots + self.idle_slots
        return self.idle_slots / total if total else 0.0

    def after(self, earlier: Usage) -> Usage:
        """Returns what a query took in all, which took `earlier` in the engine that it left."""
        began = earlier.first_token_seconds is not None or earlier.useful_slots > 0
        return replace(
            self,
            useful_slots=earlier.useful_slots + self.useful_slots,
            idle_slots=earlier.idle_slots + self.idle_slots,
            queue_seconds=earlier.queue_seconds + self.queue_seconds,
            prefill_seconds=earlier.prefill_seconds + self.prefill_seconds,
            decode_seconds=earlier.decode_seconds + self.decode_seconds,
            first_token_seconds=earlier.first_token_seconds if began else self.first_token_seconds,
            preemptions=earlier.preemptions + self.preemptions,
            cached_tokens=earlier.cached_tokens if began else self.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The model's log-probability of a token: log-softmax of its raw logits, natural logarithms, at most 0.

    `rank`: 1 for the likeliest token. `best`: the likeliest token ids with their log-probabilities, best first, as many
    as were asked for.
    """

    token_id: int
    logprob: float
    rank: int
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """News for a client: tokens and text since the last update, and on the last one how the query ended.

    `text` never ends inside a character and never contains part of a stop string. `finish_reason` is "stop", "length",
    "cancelled", "expired" or "error"; `error` says what went wrong in the last two cases. It is "moved" if the query
    goes on in another engine, and no client is told that. `logprobs`: if asked for, one
    for each of `token_ids`. `prompt_logprobs`: if asked for, one for each prompt token but the first, all in the update
    with the first token. `infeasible`: the error is the client's own, because what it asked for turned out to be
    impossible. `stopped_by`: the stop string that ended it, if one did. `code`: of the error, if it has one of its own.
    """

    query_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    infeasible: bool = False
    stopped_by: str | None = None
    code: str | None = None


RESUMED = "resumed"
"""Why a query comes that was live in another engine."""


@dataclass(frozen=True, slots=True)
class QueryMoved:
    """A query came in (`was` None), or went from one state to another."""

    time: float
    query_id: str
    was: State | None
    now: State
    why: str
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class QueryEnded:
    """A query left the engine; `outcome` is its last state. Seconds count from its arrival.

    `params` and `origin`: how it was asked, and by whom. They are not in traces.
    """

    time: float
    query_id: str
    outcome: State
    finish_reason: str
    usage: Usage
    end_to_end_seconds: float
    inter_token_seconds: tuple[float, ...]
    params: SamplingParams | None = field(default=None, compare=False)
    origin: Origin = field(default=NO_ORIGIN, compare=False)


@dataclass(frozen=True, slots=True)
class QueryRejected:
    """A query was not admitted; `reason` is the error code of the answer."""

    time: float
    reason: str


@dataclass(frozen=True, slots=True)
class IterationDone:
    """One iteration of the engine: what was planned, what it cost, and the batch after it.

    `kind`: what was computed: "decode", "prefill", "both" or "none" (moves only). `stall_seconds`: how long running
    rows waited for something else than their own step, by cause. `kv_bytes_used` of `kv_bytes_budget`: bytes of all
    rows; `swap_bytes_used`: bytes of swapped-out queries. `fed`: tokens of each query that were computed in it,
    including idle ones.
    """

    index: int
    time: float
    seconds: float
    kind: str
    why: str
    rows: int
    occupied: int
    columns: int
    slots: Slots
    generated_tokens: int
    prefilled_tokens: int
    inserted: tuple[str, ...]
    detached: tuple[str, ...]
    resized_to: int | None
    waiting: int
    prefilling: int
    ready: int
    preempted: int
    kv_bytes_used: int
    step_seconds: float
    stall_seconds: Mapping[str, float] = field(default_factory=dict)
    kv_bytes_budget: int = 0
    swap_bytes_used: int = 0
    fed: Mapping[str, int] = field(default_factory=dict)


Event = QueryMoved | QueryEnded | QueryRejected | IterationDone
Sink = Callable[[Event], None]
"""Called in the engine's thread, so it must be quick and must not raise."""
