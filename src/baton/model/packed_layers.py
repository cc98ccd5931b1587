"""All of a model's weights that stay as its checkpoint packs them."""

from __future__ import annotations

from torch import nn

from baton.model.packed_experts import ATTRIBUTE, PackedExperts
from baton.model.packed_linear import PackedLinear


def packed_layers(model: nn.Module) -> list[PackedLinear | PackedExperts]:
    """Linear layers, and the weights of experts, in the model's order."""
    return list(named_packed(model).values())


def named_packed(model: nn.Module) -> dict[str, PackedLinear | PackedExperts]:
    """As `packed_layers`, by name."""
    packed: dict[str, PackedLinear | PackedExperts] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            packed[name] = module
        for experts in vars(module).get(ATTRIBUTE, ()):
            packed[f"{name}.{experts.name}"] = experts
    return packed


def packed_bytes(model: nn.Module) -> int:
    """Bytes of them as the checkpoint has them."""
    return sum(one.bytes for layer in packed_layers(model) for one in layer.weights)


def count_weights(model: nn.Module) -> int:
    """How many numbers a model's weights have, packed ones unpacked."""
    packed = sum(one.outputs * one.inputs for layer in packed_layers(model) for one in layer.weights)
    return packed + sum(parameter.numel() for parameter in model.parameters())
