"""The port behind which a forward stands: what rows are fed by, and calls of a model that feed them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from baton.kv.rectangle import Rectangle
from baton.model.execution import AttentionBackend
from baton.model.layout import Layout
from baton.model.probe import Geometry
from baton.model.visibility import Span


@dataclass(frozen=True, slots=True)
class ForwardStats:
    """How a forward was laid out: KV columns that attention read, and slots per row where rows were padded, or 0.

    `empty_rows`: slots that were computed for no row at all. `commit` makes the result last: until it is called, what
    rows hold is as before, and the forward may be repeated.
    """

    columns_read: int
    padded_to: int
    empty_rows: int
    commit: Callable[[], None]


class ModelRunner(Protocol):
    """What rows are fed by. One thread calls it, its engine's.

    `swaps_rows`: whether rows are found by `Rectangle.row_slots`, so that two of them may be exchanged.
    `whole_prompts`: prompts are exact only when fed at once (Mamba-1 layers begin each chunk from nothing).
    `long_rope_limit`: the keys of longer texts depend on what the text began with, and spans tell it; None for most.
    `recompute_limit`: a row whose text grows longer than so many tokens is to be computed anew; None for most.
    `grid`: where 0 is not, prompts are to be fed in chunks that begin at its multiples; see `Forward.fixed`.
    """

    @property
    def swaps_rows(self) -> bool: ...
    @property
    def whole_prompts(self) -> bool: ...
    @property
    def long_rope_limit(self) -> int | None: ...
    @property
    def recompute_limit(self) -> int | None: ...
    @property
    def grid(self) -> int: ...

    def decode(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """One token per row: logits `[n, vocabulary]` in float32."""

    def fill(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """Any number of tokens per row: logits `[kept, vocabulary]` in float32 of each span's last.

        Of all tokens of a span that wants `every`.
        """

    def padded(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """As `fill`, rows aligned to the longest span, `[n, T]`, where the model allows it."""


class Forward(ModelRunner, Protocol):
    """A loaded model over rows of a rectangle. Three bodies: in torch, native on the CPU, and on CUDA.

    `geometry`: what its layers keep and see. `backend`: how its attention reads the rectangle.
    """

    @property
    def geometry(self) -> Geometry: ...
    @property
    def backend(self) -> AttentionBackend: ...

    def parts(self) -> list[str]:
        """How the model is run, for people; one phrase for each part of it."""

    def fixed(self, rows: int) -> Forward:
        """Returns a forward that gives a row equal bits in any company of up to `rows` rows: `--deterministic`.

        Raises LoadError if the model's experts cannot be computed row by row.
        """


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model that is ready to be made: answers logits, and what makes its result last."""

    shape: Layout
    run: Callable[[], tuple[Tensor, Callable[[], None]]]


def together(calls: Sequence[Call]) -> tuple[Tensor, ForwardStats]:
    """Makes all calls; what could not be taken back waits for `commit`."""
    found = [one.run() for one in calls]
    logits = torch.cat([logits for logits, _ in found]) if len(found) > 1 else found[0][0]

    def commit() -> None:
        for _, last in found:
            last()

    columns = sum(one.shape.columns_read for one in calls)
    empty = sum(one.shape.empty_rows for one in calls)
    return logits, ForwardStats(columns, max(one.shape.padded_to for one in calls), empty, commit)
