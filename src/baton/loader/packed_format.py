"""What formats of packed checkpoints have in common: how tensors of a layer are found, read and checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.loader.checkpoint import Stored
from baton.model.packed import PackedWeight

UNPACKED = "or the model that is not packed, with --quantize int4"


@dataclass(frozen=True, slots=True)
class PackedFormat(ABC):
    """How a checkpoint packs the weights of its linear layers, or of its experts.

    `name`: the format, for people. `note`: what is computed otherwise than the checkpoint says, if anything.
    """

    name: str
    note: str

    packs: ClassVar[str] = "linear layers"
    """What is packed, for people."""

    joints: ClassVar[tuple[str, ...]] = (".",)
    """What stands between the names of a layer and of its tensors. "_" is that of experts."""

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of a packed layer's tensors; only a packed layer has the first one.

        A tensor of experts has one more dimension, the first.
        """

    @abstractmethod
    def weight(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int) -> PackedWeight:
        """Reads a layer's tensors. Raises LoadError if they do not fit."""

    def marks(self, tensor: Stored) -> bool:
        """Whether a tensor with the first part's name belongs to a packed layer."""
        return True

    def left_to_stock(self, stored: Mapping[str, Stored]) -> bool:
        """Whether transformers had better load this checkpoint, because some of what is packed cannot be kept."""
        return False

    def layers(self, stored: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
        """The packed layers of a checkpoint by name, each with its tensors."""
        ends = [(joint, f"{joint}{self.parts[0]}") for joint in self.joints]
        layers = [
            (name.removesuffix(end), joint)
            for joint, end in ends
            for name, one in stored.items()
            if name.endswith(end) and self.marks(one)
        ]
        return {
            layer: {part: stored[f"{layer}{joint}{part}"] for part in self.parts if f"{layer}{joint}{part}" in stored}
            for layer, joint in layers
        }


def grouped(order: Tensor, group: int) -> Tensor | None:
    """Returns the inputs, those of a group side by side; None if they lie so already.

    `order`: each input's group `[inputs]`. Raises LoadError if groups are not all of `group` inputs.
    """
    order = order.long()
    expected = torch.arange(len(order)) // group
    if order.equal(expected):
        return None
    sorted_groups, inputs = order.sort(stable=True)
    if not sorted_groups.equal(expected):
        raise LoadError(f"its inputs are not in groups of {group}")
    return inputs


def group_said(said: Mapping[str, Any]) -> tuple[int, str]:
    """The group_size of a quantization_config, 0 for all inputs, and the same for people. Raises LoadError."""
    group = said.get("group_size", 128)
    if not isinstance(group, int) or (group < 1 and group != -1):
        raise LoadError(f"has a group_size of {str(group)[:40]!r}: a number or -1 is known")
    return (0, "a scale for each output") if group == -1 else (group, f"groups of {group}")


def must_be(tensors: Mapping[str, Tensor], **shapes: tuple[int, ...]) -> None:
    """Raises LoadError if a tensor is missing or of another shape."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise LoadError(f"{name} is missing")
        if tuple(tensors[name].shape) != shape:
            raise LoadError(f"{name} is {list(tensors[name].shape)} and should be {list(shape)}")


def unpacked_words(words: Tensor, bits: int) -> Tensor:
    """The codes in int32 words, the lowest bits first: `[..., words]` -> uint8 `[..., codes]`. `bits`: 4 or 8."""
    as_bytes = words.contiguous().view(torch.uint8)
    if bits == 8:
        return as_bytes
    # Two codes of a byte become two bytes of a word. This is three times as fast as putting halves side by side.
    both = as_bytes.short()
    both |= both << 4
    both &= 0x0F0F
    return both.view(torch.uint8)


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
