"""Weights that a checkpoint has in few bits, as codes: what every packed format is turned into, piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Codes:
    """Some outputs of a weight. Group g of an output are the places g * group to (g + 1) * group - 1 of its codes.

    `codes`: uint8 `[outputs, inputs]`, unsigned, below 2^bits. `scales`: float32 `[outputs, groups]`. `zeros`: float32
    `[outputs, groups]`; a number is (code - zero) * scale. `mins`: float32 `[outputs, groups]`; a number is
    code * scale - min. At most one of the two is there.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    mins: Tensor | None = None


class PackedWeight(ABC):
    """A weight `[outputs, inputs]` as its checkpoint packs it.

    `bits`: 4 or 8, of a code. `group`: inputs that share a scale. `order`: int64 `[inputs]`, the input whose code
    stands at each place; None if they stand in their order. `table`: float32 `[16]`, what each code means; None if a
    code means itself. `float8`: whether codes in 8 bits are the bits of float8 numbers (e4m3 without infinities), which
    have scales alone. `bytes`: of what the checkpoint has.
    """

    outputs: int
    inputs: int
    bits: int
    group: int
    order: Tensor | None = None
    table: Tensor | None = None
    float8: bool = False
    bytes: int

    @abstractmethod
    def piece(self, first: int, last: int) -> Codes:
        """Outputs `first` to `last` - 1."""

    def unpacked(self, first: int, last: int) -> Tensor:
        """The numbers of outputs `first` to `last` - 1 in float32, `[outputs, inputs]`, inputs in the model's order."""
        piece = self.piece(first, last)
        numbers = self._meant(piece.codes)
        # In place and without scales for each number: this is what a forward in torch spends its time on.
        by_group = numbers.unflatten(1, (-1, self.group)) if self.inputs % self.group == 0 else numbers
        if piece.zeros is not None:
            by_group -= self._over_groups(piece.zeros)
        by_group *= self._over_groups(piece.scales)
        if piece.mins is not None:
            by_group -= self._over_groups(piece.mins)
        if self.order is None:
            return numbers
        unpacked = torch.empty_like(numbers)
        unpacked[:, self.order] = numbers
        return unpacked

    def _meant(self, codes: Tensor) -> Tensor:
        """What codes mean in float32, without scales; never the codes' own memory."""
        if self.float8:
            return codes.view(torch.float8_e4m3fn).float()
        return codes.float() if self.table is None else self.table[codes.int()]

    def _over_groups(self, of_groups: Tensor) -> Tensor:
        return of_groups.unsqueeze(-1) if self.inputs % self.group == 0 else self._spread(of_groups)

    def _spread(self, of_groups: Tensor) -> Tensor:
        return of_groups.repeat_interleave(self.group, dim=1)[:, : self.inputs]
