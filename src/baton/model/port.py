"""The port of a forward: what feeds rows, and calls of a model that feed them together."""

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
    """How a forward was laid out: KV columns that attention read, and slots per row if rows were padded, or 0.

    `empty_rows`: slots that were computed for no row. `commit` makes the result permanent: before it, rows are
    unchanged, and the forward may be repeated.
    """

    columns_read: int
    padded_to: int
    empty_rows: int
    commit: Callable[[], None]


class ModelRunner(Protocol):
    """Feeds rows. Only the engine's thread calls it.

    `swaps_rows`: whether rows are read by `Rectangle.row_slots`, so that two rows may be swapped. `whole_prompts`:
    prompts are exact only when fed at once (Mamba-1 layers begin each chunk from nothing). `long_rope_limit`: the keys
    of longer texts depend on the text's first length, which spans have; None for most. `recompute_limit`: a row whose
    text grows beyond so many tokens must be recomputed; None for most. `grid`: if it is not 0, prompts must be fed in
    chunks that begin at its multiples; see `Forward.fixed`.
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
        """One token per row: float32 logits `[n, vocabulary]`."""

    def fill(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """Any number of tokens per row: float32 logits `[kept, vocabulary]` of each span's last token.

        If a span wants `every`, of all its tokens.
        """

    def padded(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """As `fill`, but rows are aligned to the longest span, `[n, T]`, if the model allows it."""


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
    """A call of the model that is ready to run. Returns logits, and a function that makes its result permanent."""

    shape: Layout
    run: Callable[[], tuple[Tensor, Callable[[], None]]]


def together(calls: Sequence[Call]) -> tuple[Tensor, ForwardStats]:
    """Runs all calls; what could not be undone waits for `commit`."""
    outcomes = [one.run() for one in calls]
    logits = torch.cat([logits for logits, _ in outcomes]) if len(outcomes) > 1 else outcomes[0][0]

    def commit() -> None:
        for _, last in outcomes:
            last()

    columns = sum(one.shape.columns_read for one in calls)
    empty = sum(one.shape.empty_rows for one in calls)
    return logits, ForwardStats(columns, max(one.shape.padded_to for one in calls), empty, commit)
