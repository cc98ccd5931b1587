"""The rectangle: keys and values of all rows, `[rows, columns, kv_heads, head_dim]` per layer.

Token p of a row sits in column p. Nothing is ever shifted: position ids and masks follow from the rows' lengths.
This is the paper's vector shaping (BATON, section 4) without its shared write column, see docs/lab-notes.md.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.errors import SettingError

_PAGE = mmap.PAGESIZE
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps per token: `heads` x `key_dim` and `heads` x `value_dim` numbers."""

    heads: int
    key_dim: int
    value_dim: int


class Rectangle:
    """Buffers for `capacity` rows of `columns` tokens, and how many tokens each row holds (`lens`).

    On the CPU the memory is only address space until a row grows into it, and a cleared row's pages go back to the
    system. On other devices it is allocated at once.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        capacity: int,
        columns: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shapes = tuple(shapes)
        self.capacity = capacity
        self.columns = columns
        self.lens = [0] * capacity
        self.dtype = dtype
        self.device = device
        self.bytes_per_token = bytes_per_token(shapes, dtype)
        self._maps: dict[int, mmap.mmap] = {}
        self.keys = [self._buffer(shape.heads, shape.key_dim) for shape in self.shapes]
        self.values = [self._buffer(shape.heads, shape.value_dim) for shape in self.shapes]

    @property
    def bytes_used(self) -> int:
        """Bytes of the tokens that rows hold."""
        return sum(self.lens) * self.bytes_per_token

    def write(self, row: int, keys: Sequence[Tensor], values: Sequence[Tensor], count: int) -> None:
        """KV embedding: copies the first `count` tokens of `[>= count, heads, dim]` tensors, one per layer, in."""
        for mine, theirs in zip(self.keys, keys, strict=True):
            mine[row, :count].copy_(theirs[:count])
        for mine, theirs in zip(self.values, values, strict=True):
            mine[row, :count].copy_(theirs[:count])
        self.lens[row] = count

    def view(self, row: int) -> tuple[list[Tensor], list[Tensor]]:
        """The row's keys and values per layer, `[len, heads, dim]`, not copied."""
        count = self.lens[row]
        return [k[row, :count] for k in self.keys], [v[row, :count] for v in self.values]

    def clear(self, row: int) -> None:
        """Empties the row and gives its memory back."""
        self.lens[row] = 0
        # Also where the row holds no token: a forward that failed may have written some.
        for buffer in (*self.keys, *self.values):
            self._give_back(buffer, row)

    def move(self, source: int, target: int) -> None:
        """The row `source` goes to the empty row `target`."""
        keys, values = self.view(source)
        self.write(target, keys, values, self.lens[source])
        self.clear(source)

    def _buffer(self, heads: int, dim: int) -> Tensor:
        column_bytes = heads * dim * self.dtype.itemsize
        # A row begins on a page, so that its pages are its own.
        step = _PAGE // math.gcd(_PAGE, column_bytes)
        columns = -(-self.columns // step) * step
        size = self.capacity * columns * column_bytes
        if not is_lazy(self.device):
            return torch.zeros(self.capacity, columns, heads, dim, dtype=self.dtype, device=self.device)
        # Private and anonymous: zero pages, committed at the first write, given back by madvise.
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        except (OSError, ValueError, OverflowError) as error:
            message = f"{size / 2**30:.1f} GiB of address space could not be reserved ({error}): "
            raise SettingError(message + "lower --max-batch-size or --max-model-len", param="max_model_len") from error
        buffer = torch.frombuffer(memory, dtype=self.dtype).view(self.capacity, columns, heads, dim)
        self._maps[buffer.data_ptr()] = memory
        return buffer

    def _give_back(self, buffer: Tensor, row: int) -> None:
        memory = self._maps.get(buffer.data_ptr())
        if memory is None:
            # A NaN left behind would poison masked attention, which multiplies hidden columns by zero.
            buffer[row].zero_()
            return
        size = buffer.stride(0) * buffer.element_size()
        memory.madvise(mmap.MADV_DONTNEED, row * size, size)


def is_lazy(device: torch.device) -> bool:
    """Whether a rectangle's memory there is only address space until it is written."""
    return device.type == "cpu" and sys.platform == "linux"


def bytes_per_token(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Bytes that one token's keys and values take over all layers."""
    return sum(shape.heads * (shape.key_dim + shape.value_dim) for shape in shapes) * dtype.itemsize
