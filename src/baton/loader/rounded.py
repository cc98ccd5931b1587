"""A model with the numbers that native products read in place of its own: the oracle of a quantised one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from baton.native.packing import Packing


@contextmanager
def rounded_weights(model: PreTrainedModel, packing: Packing) -> Iterator[None]:
    """For so long, linear layers have the weights that `packing` makes of them; a second copy of all is held.

    Raises LoadError where there are no native kernels.
    """
    head = getattr(model.get_output_embeddings(), "weight", None)
    before: dict[int, tuple[nn.Parameter, Tensor]] = {}
    try:
        for module in model.modules():
            if packing.exact or not isinstance(module, (nn.Linear, Conv1D)) or id(module.weight) in before:
                continue
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            before[id(weight)] = weight, weight.data
            packed = packing.of(head=weight is head)
            turned = isinstance(module, Conv1D)
            rounded = packed.rounded(weight.data.t() if turned else weight.data)
            weight.data = rounded.t().contiguous() if turned else rounded
        yield
    finally:
        for parameter, data in before.values():
            parameter.data = data
