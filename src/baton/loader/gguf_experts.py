"""Experts of GGUF files: gate, up and down of all experts of a layer, each in one tensor.

Transformers has gate and up in one weight, one behind the other or in turn, which an experts module says itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baton.core.errors import LoadError

_NAME = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down|gate_up)_exps\.(weight|bias)")
_ROUTER = re.compile(r"blk\.(\d+)\.ffn_gate_inp\.weight")
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class _Part:
    """`kind`: ggml's number of the form in which `numbers` `[experts, outputs, ...]` are; None: as numbers."""

    name: str
    kind: int | None
    numbers: Tensor


@dataclass(slots=True)
class Experts:
    """The experts of a model. `waiting`: parts of gates and ups whose other half is still to come."""

    modules: dict[int, tuple[str, Any]]
    waiting: dict[tuple[str, str], dict[str, _Part]] = field(default_factory=dict)

    def take(self, name: str, kind: int | None, numbers: Tensor) -> Iterator[tuple[str, Tensor]] | None:
        """The model's tensors that are whole with this one of the file; None if it is none of experts.

        Raises LoadError where the model has no experts for it.
        """
        known = _NAME.fullmatch(name)
        if known is None:
            return None
        layer, what, end = int(known[1]), known[2], known[3]
        if layer not in self.modules:
            raise LoadError(f"has {name}, and the model has no experts there: it is not read")
        path, module = self.modules[layer]
        return self._whole(path, module, what, end, _Part(name, kind, numbers))

    def _whole(self, path: str, module: Any, what: str, end: str, part: _Part) -> Iterator[tuple[str, Tensor]]:
        if what in ("gate", "up") and module.has_gate:
            halves = self.waiting.setdefault((path, end), {})
            halves[what] = part
            if len(halves) < 2:
                return
            del self.waiting[path, end]
            part = _joined(halves["gate"], halves["up"], behind=module.is_concatenated)
            what = "gate_up"
        to = f"{path}.{what}_proj"
        if end == "bias":
            yield f"{to}_bias", part.numbers
        elif part.kind is None:
            turned = part.numbers.transpose(1, 2) if module.is_transposed else part.numbers
            yield to, turned.contiguous()
        else:
            yield f"{to}_blocks", part.numbers
            yield f"{to}_kind", torch.full((len(part.numbers), 1), part.kind, dtype=torch.int32)


def experts_of(model: nn.Module) -> Experts:
    """The experts behind transformers' interface, by their layers' numbers."""
    modules: dict[int, tuple[str, Any]] = {}
    for path, module in model.named_modules():
        layer = _LAYER.search(path)
        if layer and hasattr(module, "is_concatenated") and hasattr(module, "has_gate"):
            modules[int(layer[1])] = path, module
    return Experts(modules)


def name_of(gguf_name: str, experts: Experts) -> str | None:
    """The model's own name for the weight that a tensor of experts is a part of; None if it is none."""
    known = _NAME.fullmatch(gguf_name)
    if known is None or int(known[1]) not in experts.modules:
        return None
    path, module = experts.modules[int(known[1])]
    what = "gate_up" if known[2] in ("gate", "up") and module.has_gate else known[2]
    return f"{path}.{what}_proj{'_bias' if known[3] == 'bias' else ''}"


def router_of(gguf_name: str, model: nn.Module, experts: Experts) -> str | None:
    """What chooses a layer's experts: the module beside them with a row for each, whatever it is called."""
    known = _ROUTER.fullmatch(gguf_name)
    if known is None or int(known[1]) not in experts.modules:
        return None
    path, module = experts.modules[int(known[1])]
    parent = path.rpartition(".")[0]
    count = len(next(module.parameters()))
    for name, beside in model.get_submodule(parent).named_children():
        if beside is not module and len(getattr(beside, "weight", ())) == count:
            return f"{parent}.{name}.weight"
    return None


def rows_of(tensor: Any) -> np.ndarray[Any, Any]:
    """The blocks of a file's tensor of experts, `[experts, outputs, bytes]`."""
    _, outputs, experts = (int(size) for size in tensor.shape)
    return np.asarray(tensor.data).reshape(experts, outputs, -1)


def _joined(gate: _Part, up: _Part, *, behind: bool) -> _Part:
    if gate.kind != up.kind or gate.numbers.shape != up.numbers.shape:
        raise LoadError(f"has {gate.name} and {up.name} in different forms, which is not read")
    both = (gate.numbers, up.numbers)
    return _Part(gate.name, gate.kind, torch.cat(both, 1) if behind else torch.stack(both, 2).flatten(1, 2))
