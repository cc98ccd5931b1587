"""A model with the numbers that native products read in place of its own: the oracle of a quantised one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.native.graph import Graph
from baton.native.lower import lower
from baton.native.packing import Packing
from baton.native.record import record
from baton.native.weights import matrices, packings


@contextmanager
def rounded_weights(model: PreTrainedModel, packing: Packing) -> Iterator[None]:
    """For so long, products' weights are those that `packing` makes of them; a second copy of all is held.

    A model whose step cannot be native keeps its own: loading it in this packing is refused. Raises LoadError where
    there are no native kernels.
    """
    before: dict[int, tuple[nn.Parameter, Tensor]] = {}
    parameters = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    graph = None if packing.exact else _step(model)
    try:
        for one, how in zip(graph.tables, packings(graph, packing), strict=True) if graph else ():
            parameter = None if one.weight is None else parameters.get(one.weight.data_ptr())
            if not one.packed or how.exact or one.weight is None or parameter is None:
                continue
            before[id(parameter)] = parameter, parameter.data
            parameter.data = _rounded(one.weight, how)
        yield
    finally:
        for parameter, data in before.values():
            parameter.data = data


def _step(model: PreTrainedModel) -> Graph | None:
    try:
        return lower(record(model))
    except LoadError:
        return None


def _rounded(weight: Tensor, packing: Packing) -> Tensor:
    """In the layout of the parameter, which may lie the other way round."""
    turned = not weight.is_contiguous()
    rounded = [packing.rounded(one) for one in matrices(weight.detach())]
    whole = torch.stack([one.t() if turned else one for one in rounded])
    return whole if weight.dim() == 3 else whole[0]
