"""A fill whose attention is one call per layer for all its rows: torch's flash attention over packed sequences.

Keys and values are read in place. In memory the rectangle's rows follow one another, so to the kernel each row is a
sequence, and the gap between two rows' keys is a sequence without queries: it is never read.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.kv.rectangle import Rectangle
from baton.model.attention import Fill, positions_of
from baton.model.layout import on_device
from baton.model.visibility import Span, Visibility

# The limits of flash attention.
_MOST_DIM, _DIM_STEP = 256, 8
# How far one call may be from one call per row, relative to the largest number.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass(slots=True)
class Varlen:
    """Attention over packed sequences, called as torch's `varlen_attn` is. `calls`: how often it was called.

    `proving`: each call is compared with attention row by row.
    """

    function: Callable[..., Any]
    proving: bool = False
    calls: int = 0


def of_torch(device: torch.device, dtype: torch.dtype) -> Varlen:
    """Torch's own. Raises LoadError if it has none for this number format on this device."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        raise LoadError(f"flash attention is for half precision on CUDA, not for {dtype} on {device.type}")
    function = _varlen_attn()
    known = inspect.signature(function).parameters if function is not None else {}
    if not {"scale", "window_size"} <= known.keys():
        raise LoadError(f"torch {torch.__version__} has none that knows windows")
    # Until 2.11 fewer key heads than query heads need no flag.
    leave: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known else {}
    assert function is not None
    return Varlen(partial(function, **leave))


def _varlen_attn() -> Callable[..., Any] | None:
    """None in a torch without it. Its module is imported late because it imports torch's compiler."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


@dataclass(slots=True)
class Packed(Fill):
    """As a Fill; layers that flash attention cannot do (softcaps, sinks, chunks) go row by row."""

    varlen: Varlen | None = None
    # For each kind of layer: where sequences of queries and of keys begin and end.
    _bounds: dict[tuple[int, Visibility | None], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float | None,
        visibility: Visibility,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """q `[1, Hq, N, D]`, keys and values `[R, C, H, D]` -> `[1, N, Hq, D]`."""
        if self.varlen is None or sinks is not None or not _takes(keys, values, visibility):
            return Fill.attend(self, q, keys, values, scale, visibility, sinks)
        self.varlen.calls += 1
        output: Tensor = self.varlen.function(
            q[0].transpose(0, 1),
            *self._sequences(keys, values, visibility),
            # With 1, kernels assume that each sequence has a query.
            max(2, *(span.count for span in self.spans)),
            max(span.stop for span in self.spans),
            scale=scale,
            window_size=(visibility.window - 1, 0),
        )[None]
        if self.varlen.proving:
            _compare(output, Fill.attend(self, q, keys, values, scale, visibility))
        return output

    def _sequences(self, keys: Tensor, values: Tensor, visibility: Visibility) -> tuple[Tensor, ...]:
        """Keys and values `[tokens, H, D]`, and where sequences of queries and of keys begin and end."""
        rows = [span.row for span in self.spans]
        ring = keys.shape[1] < self.rectangle.columns
        if not ring and all(row < following for row, following in itertools.pairwise(rows)):
            pitch = keys.stride(0) // keys.stride(1)
            numbers = self._on_device((pitch, None), lambda: bounds(self.spans, pitch))
            return one_behind_the_other(keys), one_behind_the_other(values), *numbers
        # A ring's tokens must be in the order of the text, so what each span sees is copied.
        pieces = [torch.cat([self._seen_by(some, span, visibility) for span in self.spans]) for some in (keys, values)]
        return *pieces, *self._on_device((0, visibility), lambda: bounds_seen(self.spans, visibility))

    def _on_device(
        self, kind: tuple[int, Visibility | None], find: Callable[[], tuple[list[int], list[int]]]
    ) -> tuple[Tensor, Tensor]:
        if kind not in self._bounds:
            queries, keys = (on_device(some, self.cols.device, torch.int32) for some in find())
            self._bounds[kind] = (queries, keys)
        return self._bounds[kind]


def _takes(keys: Tensor, values: Tensor, visibility: Visibility) -> bool:
    dim = keys.shape[-1]
    alike = keys.shape == values.shape and keys.stride() == values.stride()
    return alike and not (visibility.softcap or visibility.chunk) and dim <= _MOST_DIM and dim % _DIM_STEP == 0


def packed(spans: Sequence[Span], rectangle: Rectangle, varlen: Varlen) -> Packed:
    """All tokens of all spans, one span after the other, attended together."""
    return Packed(spans, rectangle, *positions_of(spans, rectangle), sum(span.stop for span in spans), varlen=varlen)


def bounds(spans: Sequence[Span], pitch: int) -> tuple[list[int], list[int]]:
    """Where sequences of queries and of keys begin and end, `[2 spans + 1]` each: a gap, a span, a gap, a span.

    Keys of row r begin at r * `pitch`. Spans are in the order of their rows.
    """
    queries, keys = [0], [0]
    for span in spans:
        first = span.row * pitch
        queries += [queries[-1], queries[-1] + span.count]
        keys += [first, first + span.stop]
    return queries, keys


def bounds_seen(spans: Sequence[Span], visibility: Visibility) -> tuple[list[int], list[int]]:
    """The same if keys are only those that the spans see, one span's after the other's: `[spans + 1]` each."""
    seen = (span.stop - visibility.lowest(span.start) for span in spans)
    return [*itertools.accumulate((span.count for span in spans), initial=0)], [*itertools.accumulate(seen, initial=0)]


def one_behind_the_other(buffer: Tensor) -> Tensor:
    """`[R, C, H, D]` -> `[tokens, H, D]` in the same memory: token c of row r is at r * pitch + c."""
    pitch = buffer.stride(0) // buffer.stride(1)
    tokens = (buffer.shape[0] - 1) * pitch + buffer.shape[1]
    return buffer.as_strided((tokens, *buffer.shape[2:]), buffer.stride()[1:])


def _compare(output: Tensor, expected: Tensor) -> None:
    error = float((output - expected).abs().max() / expected.abs().max())
    if not error <= _TOLERANCE.get(output.dtype, 2e-2):
        raise LoadError(f"one call for all prompts differs from calls request by request by {error:.1e}")
