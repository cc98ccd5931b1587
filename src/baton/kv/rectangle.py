"""The rectangle: what all rows keep: keys and values `[rows, columns, kv_heads, head_dim]` of each layer, and states.

Token p of a row is in column p; in a layer with a window of W tokens, in column p % W of a ring of W columns. Nothing
is ever shifted: position ids and masks follow from the rows' lengths. Recurrent layers keep states `[rows, ...]`, or
two of each in turn, so that a step writes what it does not read and a step that fails has changed nothing. This is the
paper's vector shaping (BATON, section 4) without its shared write column, which `kv/aligned.py` has.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baton.core.errors import SettingError
from baton.core.footprint import Columns, Footprint

_PAGE = mmap.PAGESIZE
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


@dataclass(frozen=True, slots=True)
class StateShape:
    """One state of a recurrent layer: what it keeps per row, whatever the row's length. `name` is the layer's own.

    `copies`: 2 if steps write another copy than they read, 1 if they do not.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str = ""
    # How memory is used says nothing of what is kept, so that it is not in a segment's stamp.
    copies: int = field(default=1, repr=False)

    @property
    def bytes(self) -> int:
        """Of one copy."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps: per token `heads` x `key_dim` and `heads` x `value_dim` numbers, and its states.

    `window`: only the last so many tokens are kept; 0: all. `heads` 0: no keys and values.
    """

    heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int = 0
    states: tuple[StateShape, ...] = ()


@dataclass(frozen=True, slots=True)
class Buffer:
    """One kind of data of all rows: `tensor` `[rows, columns, ...]`, or `[rows x copies, ...]`: states, `columns` 0."""

    tensor: Tensor
    columns: int
    copies: int = 1

    def part(self, slot: int, count: int) -> Tensor:
        """The part of a row of so many tokens."""
        return self.tensor[slot, : min(count, self.columns)] if self.columns else self.tensor[slot]


class Rectangle:
    """Buffers for `capacity` rows of `columns` tokens, and how many tokens each row holds (`lens`).

    `row_slots[row]`: where a row is in the buffers: at its own number, unless rows were swapped. `keys[l]`,
    `values[l]`, `states[l]` are those of layer l; `rings[l]` is its number of columns if it is a ring, or 0. On the CPU
    the memory is only address space until a row grows into it, and a cleared row's pages go back to the system. On
    other devices it is allocated at once, or mapped as rows grow (`cuda/mapped_rectangle.py`).
    """

    mapped = False
    """Whether columns for which no `reserve` was called must not be touched at all, not even read and masked."""

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
        self.row_slots = list(range(capacity))
        self.dtype = dtype
        self.device = device
        self.footprint = footprint(shapes, columns, dtype, device)
        self._maps: dict[int, mmap.mmap] = {}
        self._buffers: list[Buffer] = []
        # By row slot: how many tokens may have been written there since it was cleared, and which copy of its states
        # is valid.
        self._reached = [0] * capacity
        self._valid = [0] * capacity
        self._copies = max((state.copies for shape in self.shapes for state in shape.states), default=1)
        self.rings = [shape.window if shape.window < columns else 0 for shape in self.shapes]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.states: list[list[Tensor]] = []
        self._allocate()

    @property
    def spare_bytes(self) -> int:
        """Bytes that were taken for rows and that no row needs."""
        return 0

    def bytes_of(self, rows: Sequence[int]) -> int:
        """Bytes that these rows take."""
        return sum(self.footprint.of(self.lens[row]) for row in rows)

    def mapped_pages(self, row: int) -> int:
        """Pages that the row has, whether it needs them or not. A new query should get the row with the most."""
        return 0

    def reserve(self, place: int, tokens: int) -> None:
        """Reserves memory for the first so many tokens' columns of this row slot, and for its states.

        Must be called before any work that writes them is launched. Raises torch.OutOfMemoryError if there is no
        memory; then nothing has changed.
        """
        if tokens > self._reached[place]:
            self._reached[place] = tokens

    def release_unused(self) -> bool:
        """Gives back to the device what no row needs. Returns whether there was anything."""
        return False

    def write(self, row: int, parts: Sequence[Tensor], count: int) -> None:
        """KV embedding: copies in what a row of `count` tokens keeps, as `view` returns it."""
        kept = self.claim(row, count)
        given = [
            part[: min(count, buffer.columns)] if buffer.columns else part
            for buffer, part in zip(self._buffers, parts, strict=True)
        ]
        if kept:
            torch._foreach_copy_(kept, given)

    def claim(self, row: int, count: int) -> list[Tensor]:
        """Makes the row hold so many tokens. Returns its parts, which the caller must write before they are read."""
        self.reserve(self.row_slots[row], count)
        self.lens[row] = count
        return self.view(row)

    def view(self, row: int) -> list[Tensor]:
        """What the row keeps, not copied: one part for each buffer, by layer: keys, values, states."""
        place = self.row_slots[row]
        return [self._part(buffer, place, self.lens[row]) for buffer in self._buffers]

    def state_slots(self, row: int) -> tuple[int, int]:
        """Where the row's states are valid, and where a step writes them: numbers of slots in `states`."""
        place = self.row_slots[row]
        first, valid = place * self._copies, self._valid[place]
        return first + valid, first + (valid + 1) % self._copies

    def flip(self, row: int) -> None:
        """Makes those states of the row valid that a step wrote."""
        place = self.row_slots[row]
        self._valid[place] = (self._valid[place] + 1) % self._copies

    def clear(self, row: int) -> None:
        """Empties the row and gives its memory back."""
        self.lens[row] = 0
        place = self.row_slots[row]
        written, self._reached[place] = self._reached[place], 0
        self._valid[place] = 0
        if self._maps:
            # Also if the row holds no token: a forward that failed may have written some.
            for buffer in self._buffers:
                self._give_back(buffer, place)
        elif written and self._buffers:
            # A NaN left behind would poison masked attention, which multiplies masked columns by zero.
            torch._foreach_zero_([self._part(buffer, place, written) for buffer in self._buffers])

    def move(self, source: int, target: int) -> None:
        """Moves the row `source` to the empty row `target`."""
        self.write(target, self.view(source), self.lens[source])
        self.clear(source)

    def swap_rows(self, row: int, other: int) -> None:
        """Swaps two rows without copying; for readers that use `row_slots`."""
        for listed in (self.lens, self.row_slots):
            listed[row], listed[other] = listed[other], listed[row]

    def _allocate(self) -> None:
        """Makes the buffers, `keys`, `values` and `states`."""
        for shape, ring in zip(self.shapes, self.rings, strict=True):
            width = ring or self.columns
            self.keys.append(self._columns(width, shape.heads, shape.key_dim))
            self.values.append(self._columns(width, shape.heads, shape.value_dim))
            self.states.append([self._state(state) for state in shape.states])

    def _columns(self, width: int, heads: int, dim: int) -> Tensor:
        if not heads * dim:
            return torch.empty(self.capacity, width, heads, dim, dtype=self.dtype, device=self.device)
        # A row begins on a page, so that its pages are its own.
        step = _PAGE // math.gcd(_PAGE, heads * dim * self.dtype.itemsize)
        padded = -(-width // step) * step
        tensor = self._reserved((self.capacity, padded, heads, dim), self.dtype)
        self._buffers.append(Buffer(tensor[:, :width], width))
        return tensor[:, :width]

    def _state(self, state: StateShape) -> Tensor:
        count = math.prod(state.shape)
        step = _PAGE // math.gcd(_PAGE, state.dtype.itemsize)
        flat = self._reserved((self.capacity * state.copies, -(-count // step) * step), state.dtype)
        tensor: Tensor = flat[:, :count].unflatten(1, state.shape)
        self._buffers.append(Buffer(tensor, 0, state.copies))
        return tensor

    def _part(self, buffer: Buffer, place: int, count: int) -> Tensor:
        return buffer.part(place * buffer.copies + (self._valid[place] if buffer.copies > 1 else 0), count)

    def _reserved(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if not is_lazy(self.device):
            return torch.zeros(shape, dtype=dtype, device=self.device)
        size = math.prod(shape) * dtype.itemsize
        # Private and anonymous: zero pages, committed at the first write, given back by madvise.
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        except (OSError, ValueError, OverflowError) as error:
            message = f"{size / 2**30:.1f} GiB of address space could not be reserved ({error}): "
            raise SettingError(message + "lower --max-batch-size or --max-model-len", param="max_model_len") from error
        buffer = torch.frombuffer(memory, dtype=dtype).view(shape)
        self._maps[buffer.data_ptr()] = memory
        return buffer

    def _give_back(self, buffer: Buffer, row: int) -> None:
        memory = self._maps[buffer.tensor.data_ptr()]
        size = buffer.tensor.stride(0) * buffer.tensor.element_size() * buffer.copies
        memory.madvise(mmap.MADV_DONTNEED, row * size, size)


def is_lazy(device: torch.device) -> bool:
    """Whether a rectangle's memory on this device is only address space until it is written."""
    return device.type == "cpu" and sys.platform == "linux"


def footprint(shapes: Sequence[LayerShape], columns: int, dtype: torch.dtype, device: torch.device) -> Footprint:
    """What a query takes in a rectangle of so many columns."""
    kinds: Counter[tuple[int, int]] = Counter()
    state_bytes = 0
    page = _PAGE if is_lazy(device) else 1
    for shape in shapes:
        ring = shape.window if shape.window < columns else 0
        for dim in (shape.key_dim, shape.value_dim):
            if shape.heads * dim:
                kinds[shape.heads * dim * dtype.itemsize, ring] += 1
        state_bytes += sum(-(-state.bytes // page) * page * state.copies for state in shape.states)
    return Footprint(
        tuple(Columns(size, ring, count) for (size, ring), count in sorted(kinds.items())), state_bytes, page
    )
