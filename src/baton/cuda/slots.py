"""The inputs of a step of constant shape: one array of numbers per slot, which is read on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from baton.sampling.draw import FILTERS, FIRST_CANDIDATES, NO_FILTERS, Draw, filters_of, mixed_seed
from baton.sampling.on_device import Chances, Kind, keys_of

# For each slot: token, row, tokens in it, seed; temperature and filters as the bits of a float64.
_INTEGERS = 4
NUMBERS = _INTEGERS + 1 + len(FILTERS)


@dataclass(frozen=True, slots=True)
class Chance:
    """How a slot's next token is drawn on the device; greedily by default."""

    temperature: float = 0.0
    filters: tuple[float, ...] = NO_FILTERS
    seed: int = 0

    @property
    def kind(self) -> Kind:
        if not self.temperature:
            return Kind.GREEDY
        return Kind.FREE if self.filters == NO_FILTERS else Kind.FILTERED


GREEDY = Chance()


def chance_of(draw: Draw) -> Chance | None:
    """None if a row's logits need more than is done on the device."""
    params = draw.params
    if draw.shapes or draw.mask is not None or params.logprobs is not None or params.top_k > FIRST_CANDIDATES:
        return None
    if params.greedy:
        return GREEDY
    return Chance(draw.temperature, filters_of(params), mixed_seed(draw.seed))


@dataclass(frozen=True, slots=True)
class Slot:
    """One token of one row. `place`: the row's slot in the rectangle. `stop`: the row's tokens including this one.

    `token` below 0: what slot -1 - token of the step before drew.
    """

    place: int
    token: int
    stop: int
    chance: Chance = GREEDY


def follows(slot: int) -> int:
    """The token of a slot that continues with what this slot of the step before drew."""
    return -1 - slot


def chances_of(inputs: Tensor) -> Chances:
    """How the slots draw, from the array of inputs."""
    stops, seeds = inputs[2:_INTEGERS]
    numbers = inputs[_INTEGERS:].view(torch.float64)
    return Chances(numbers[0], numbers[1:], keys_of(seeds, stops))


def step_inputs(slots: Sequence[Slot], size: int) -> Tensor:
    """All inputs of a step, `[NUMBERS, size]`, in memory that a device can read directly."""
    array = np.zeros((NUMBERS, size), np.int64)
    count = len(slots)
    array[0, :count] = [slot.token for slot in slots]
    array[1, :count] = [slot.place for slot in slots]
    array[2, :count] = [slot.stop for slot in slots]
    if any(slot.chance is not GREEDY for slot in slots):
        array[3, :count] = np.array([slot.chance.seed for slot in slots], np.uint64).view(np.int64)
        numbers = np.array([(slot.chance.temperature, *slot.chance.filters) for slot in slots], np.float64)
        array[_INTEGERS:, :count] = numbers.T.copy().view(np.int64)
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
