"""Recordings of stock models, made once in a test session: loading a tiny model is mostly that.

A model of the same classes and config records to the same graph. Its parameters and buffers take the places of those
that were recorded, by their names. Each load's self-check compares what comes of it with the model alone, as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor
from torch.fx import Graph, GraphModule
from transformers import PreTrainedModel

from baton.kv.rectangle import LayerShape
from baton.loader import choose, rounded
from baton.native.record import Recorded, record

# The graph, the name in the model of each tensor that it reads, and what it reads besides.
_known: dict[object, tuple[Graph, dict[str, str], dict[str, Any]]] = {}


def remember_recordings() -> None:
    for room in (choose, rounded):
        room.record = recorded  # type: ignore[attr-defined]


def recorded(model: PreTrainedModel, shapes: Sequence[LayerShape] | None = None) -> Recorded:
    key, tensors = _key(model), _tensors(model)
    if key is None:
        return record(model, shapes)
    if key not in _known:
        _known[key] = _apart(record(model, shapes).graph, tensors)
    graph, names, constants = _known[key]
    again = SimpleNamespace(graph=graph, **constants, **{target: tensors[name] for target, name in names.items()})
    return Recorded(cast(GraphModule, again))


def _apart(made: GraphModule, tensors: dict[str, Tensor]) -> tuple[Graph, dict[str, str], dict[str, Any]]:
    """Keeps none of the model's tensors alive."""
    read = {target: getattr(made, target) for target in (str(n.target) for n in made.graph.nodes if n.op == "get_attr")}
    names = {_place(one): name for name, one in tensors.items()}
    named = {t: names[_place(one)] for t, one in read.items() if isinstance(one, Tensor) and _place(one) in names}
    made.graph.owning_module = None
    return made.graph, named, {target: one for target, one in read.items() if target not in named}


def _key(model: PreTrainedModel) -> object:
    """None for a model that is not as transformers or the package has it: it is recorded each time."""
    bodies = {(type(module), type(module).forward) for module in model.modules()}
    stock = all(body.__module__.startswith(("torch.", "transformers.", "baton.builtin.")) for body, _ in bodies)
    if not stock or any("forward" in vars(module) for module in model.modules()):
        return None
    shapes = tuple((name, one.shape, one.dtype, one.device) for name, one in _tensors(model).items())
    return model.config.to_json_string(use_diff=False), frozenset(bodies), shapes


def _tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _place(tensor: Tensor) -> object:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
