"""A model of a few lines that shows every mistake with keys and values: the next token is a hash of a row's columns.

It keeps each token's id in the rectangle and computes from what it finds there, so a row that was moved, cut, mixed up
or fed twice says something else than the query alone. What it says can be scripted, and it can be made to fail.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from baton.batch.batch import RectangleBatch
from baton.batch.feeder import RowFeeder
from baton.batch.prefill import PrefillHere
from baton.batch.rows import Rows
from baton.core.clock import Clock
from baton.core.events import Sink
from baton.core.footprint import Columns, Footprint
from baton.core.query import Query
from baton.core.settings import Settings
from baton.core.text import TextStream
from baton.engine.engine import Engine
from baton.engine.output import OutputProcessor, TextOf
from baton.kv.aligned import AlignedRectangle
from baton.kv.budget import Budget
from baton.kv.prefix import PrefixStore
from baton.kv.rectangle import LayerShape, Rectangle
from baton.kv.segment import KVSegment, arrived
from baton.model import attention
from baton.model.aligned import Aligned, AlignedForward
from baton.model.attention import Layout, Span
from baton.model.padded import padded
from baton.policy.memory_guard import MemoryGuard
from baton.policy.port import GUARANTEED_TOKENS, Policy
from baton.testing.clock import ManualClock
from random_batch import NoText, RandomBatch, Recorder

VOCABULARY = 50
COLUMNS = 40
BYTES_PER_TOKEN = 8
FOOTPRINT = Footprint((Columns(4, count=2),))
STAMP = "toy"
NAN = -1

Say = Callable[[list[int]], int | Tensor]
"""The next token after these, NAN if logits are not finite, or all logits. If it raises, the forward raises."""


def hashed(tokens: list[int]) -> int:
    """A token that changes with any token before it and with their order; never one of the first three."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return 3 + state % (VOCABULARY - 3)


class ToyForward:
    """Replaces `model/forward.py`. `calls`: how often each of its three methods was used."""

    whole_prompts = False
    long_rope_limit: int | None = None
    recompute_limit: int | None = None
    grid = 0
    swaps_rows = False

    def __init__(self, say: Say = hashed) -> None:
        self.say = say
        self.calls = {"decode": 0, "fill": 0, "padded": 0}

    def decode(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, Layout]:
        self.calls["decode"] += 1
        return self._logits(rectangle, spans, tokens), attention.decode(spans, rectangle)

    def fill(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, Layout]:
        self.calls["fill"] += 1
        return self._logits(rectangle, spans, tokens), attention.fill(spans, rectangle)

    def padded(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, Layout]:
        self.calls["padded"] += 1
        return self._logits(rectangle, spans, tokens), padded(spans, rectangle)

    def _logits(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> Tensor:
        assert all(span.count > 0 for span in spans), "a row was fed nothing"
        rows: list[Tensor] = []
        left = list(tokens)
        for span in spans:
            fed, left = left[: span.count], left[span.count :]
            rectangle.keys[0][span.row, span.start : span.stop, 0, 0] = torch.tensor(fed, dtype=torch.float32)
            rectangle.values[0][span.row, span.start : span.stop, 0, 0] = torch.tensor(fed, dtype=torch.float32)
            held = [int(token) for token in rectangle.keys[0][span.row, : span.stop, 0, 0].tolist()]
            rows += [self._row(held[:stop]) for stop in range(span.stop - span.kept + 1, span.stop + 1)]
        assert not left
        return torch.stack(rows)

    def _row(self, tokens: list[int]) -> Tensor:
        said = self.say(tokens)
        if isinstance(said, Tensor):
            return said
        return torch.full([VOCABULARY], torch.nan) if said == NAN else 30.0 * torch.eye(VOCABULARY)[said]


class ToyAligned(ToyForward):
    """Replaces `model/forward.py` under the paper's literal shaping; the layout is the real one's."""

    pads = True

    def aligned(self, shape: Aligned, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        keys = shape.rectangle.keys[0]
        for buffer in (keys, shape.rectangle.values[0]):
            buffer[shape.rows, shape.cols, 0, 0] = ids.flatten()[shape.kept].float()
        places = [place for span in shape.spans for place in range(span.start, span.stop)]
        assert positions.flatten()[shape.kept].tolist() == places
        rows: list[Tensor] = []
        for span, start in ((span, int(shape.starts[span.row])) for span in shape.spans):
            held = [int(token) for token in keys[span.row, start : start + span.stop, 0, 0].tolist()]
            rows += [self._row(held[:stop]) for stop in range(span.stop - span.kept + 1, span.stop + 1)]
        assert len(rows) == len(wanted)
        return torch.stack(rows)


def toy_rectangle(capacity: int, columns: int = COLUMNS) -> Rectangle:
    shape = LayerShape(1, 1, 1)
    rectangle = Rectangle([shape], capacity=capacity, columns=columns, dtype=torch.float32, device=torch.device("cpu"))
    rectangle.footprint = FOOTPRINT  # bytes, not pages: easier to count in one's head
    return rectangle


def toy_rows(
    capacity: int, forward: ToyForward | None = None, *, recorder: Recorder | None = None, columns: int = COLUMNS
) -> Rows:
    rectangle = toy_rectangle(capacity, columns)
    return Rows(RowFeeder(rectangle, forward or ToyForward(), recorder or Recorder()), STAMP)  # type: ignore[arg-type]


def toy_aligned_rows(capacity: int, columns: int = COLUMNS) -> Rows:
    """As `toy_rows`, aligned at their ends."""
    of = {"capacity": capacity, "columns": columns, "dtype": torch.float32, "device": torch.device("cpu")}
    body = AlignedRectangle([LayerShape(1, 1, 1)], **of)  # type: ignore[arg-type]
    body.footprint = FOOTPRINT
    return Rows(RowFeeder(body, AlignedForward(ToyAligned(), body), Recorder()), STAMP)  # type: ignore[arg-type]


def toy_segment(query: Query) -> KVSegment:
    return arrived(query, STAMP)


def toy_alone(query: Query, say: Say = hashed) -> list[int]:
    """The oracle: what the query alone would say."""
    tokens = list(query.prompt)
    for _ in range(query.limit_tokens):
        said = say(tokens)
        assert isinstance(said, int)
        tokens.append(said)
    return tokens[len(query.prompt) :]


def toy_settings(**changes: object) -> Settings:
    values = {
        "policy": "test",
        "max_rows": 4,
        "max_model_len": COLUMNS,
        "kv_bytes": 2**20,
        "prefill_chunk": 5,
        "max_stall_seconds": 0.2,
        "max_waiting": 256,
        "seed": 0,
        "swap_bytes": 2**20,
    }
    return Settings(**{**values, **changes})  # type: ignore[arg-type]


def toy_batch(
    policy: Policy,
    *,
    say: Say = hashed,
    end_ids: Sequence[int] = (),
    sinks: Sequence[Sink] = (),
    clock: Clock | None = None,
    text_of: TextOf = lambda query: TextStream(NoText(), query.params.stop),
    free_bytes: Callable[[], int] = lambda: 2**50,
    guaranteed_tokens: int = GUARANTEED_TOKENS,
    prefix_store: PrefixStore | None = None,
    **settings: object,
) -> RandomBatch:
    """An engine on the toy model; `settings` are those of `Settings`, `free_bytes` what the machine has."""
    clock = clock or ManualClock()
    holds = toy_settings(**settings)
    mine, beside = range(holds.max_rows), range(holds.max_rows, 2 * holds.max_rows + 1)
    recorder = Recorder()
    recorder._end_ids = tuple(end_ids)
    rows = toy_rows(beside.stop, ToyForward(say), recorder=recorder, columns=holds.max_model_len)
    engine = Engine(
        batch=RectangleBatch(rows, mine, holds.max_rows),
        prefiller=PrefillHere(rows, beside, beside_batch=True),
        policy=MemoryGuard(policy),
        settings=holds,
        outputs=OutputProcessor(text_of, end_ids),
        footprint=FOOTPRINT,
        stamp=STAMP,
        budget=Budget(
            holds.kv_bytes,
            holds.swap_bytes,
            floor_bytes=FOOTPRINT.of(holds.max_model_len),
            free_bytes=free_bytes,
            clock=clock,
        ),
        clock=clock,
        sinks=sinks,
        guaranteed_tokens=guaranteed_tokens,
        prefix_store=prefix_store,
    )
    return RandomBatch(engine, recorder)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(3, VOCABULARY) for _ in range(length)]
