"""What a step of constant shape is told of its slots: one array of numbers, which is read on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from baton.sampling.draw import FIRST_LOOK, Draw, mixed_seed
from baton.sampling.on_device import Chances, Kind, keys_of

# Of each slot: token, row, tokens with it, seed, top-k; temperature, top-p and min-p as the bits of a float64.
_INTEGERS, _FLOATS = 5, 3
NUMBERS = _INTEGERS + _FLOATS


@dataclass(frozen=True, slots=True)
class Chance:
    """How a slot's next token is drawn on the device; greedily by default."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    @property
    def kind(self) -> Kind:
        if not self.temperature:
            return Kind.GREEDY
        return Kind.FILTERED if self.top_k or self.top_p < 1 or self.min_p else Kind.FREE


GREEDY = Chance()


def chance_of(draw: Draw) -> Chance | None:
    """None where more has to be done to a row's logits than is done on the device."""
    params = draw.params
    if draw.shapes or draw.mask is not None or params.logprobs is not None or params.top_k > FIRST_LOOK:
        return None
    if params.greedy:
        return GREEDY
    return Chance(draw.temperature, params.top_k, params.top_p, params.min_p, mixed_seed(draw.seed))


@dataclass(frozen=True, slots=True)
class Slot:
    """One token of one row. `place`: where in the rectangle the row lies. `stop`: the row's tokens with this one.

    `token` below 0: what slot -1 - token of the step before drew.
    """

    place: int
    token: int
    stop: int
    chance: Chance = GREEDY


def follows(slot: int) -> int:
    """The token of a slot that goes on with what this slot of the step before drew."""
    return -1 - slot


def chances_of(inputs: Tensor, vocabulary: int) -> Chances:
    """How the slots draw that were `told`, in a vocabulary of so many tokens."""
    stops, seeds, top_k = inputs[2:_INTEGERS]
    temperature, top_p, min_p = inputs[_INTEGERS:].view(torch.float64)
    return Chances(temperature, torch.where(top_k > 0, top_k, vocabulary), top_p, min_p, keys_of(seeds, stops))


def told(slots: Sequence[Slot], size: int) -> Tensor:
    """All that a step is told, `[8, size]`, in memory that a device may read by itself."""
    array = np.zeros((NUMBERS, size), np.int64)
    count = len(slots)
    array[0, :count] = [slot.token for slot in slots]
    array[1, :count] = [slot.place for slot in slots]
    array[2, :count] = [slot.stop for slot in slots]
    if any(slot.chance is not GREEDY for slot in slots):
        array[3, :count] = np.array([slot.chance.seed for slot in slots], np.uint64).view(np.int64)
        array[4, :count] = [slot.chance.top_k for slot in slots]
        array[5:, :count] = (
            np.array([(slot.chance.temperature, slot.chance.top_p, slot.chance.min_p) for slot in slots], np.float64)
            .T.copy()
            .view(np.int64)
        )
    found = torch.from_numpy(array)
    return found.pin_memory() if torch.cuda.is_available() else found
