"""Puts packed layers in the place of a stock model's linear ones while transformers loads it.

Config, shards, ties and everything that is not packed stay transformers' business. No package of the format is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from baton.core.errors import LoadError
from baton.loader.checkpoint import Stored, few
from baton.loader.gguf_blocks import METHOD
from baton.loader.packed_format import PackedFormat
from baton.model.packed_experts import ATTRIBUTE, put_experts
from baton.model.packed_layers import named_packed
from baton.model.packed_linear import PackedLinear

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "BOOL": torch.bool,
}


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """What our quantizer is told: the format, and what the checkpoint's files hold."""

    def __init__(self, format: PackedFormat, stored: Mapping[str, Stored]) -> None:
        self.quant_method: Any = METHOD
        self.format = format
        self.stored = stored

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD}

    def __deepcopy__(self, memo: object) -> PackedConfig:
        return copy.copy(self)  # transformers copies configs, and this one never changes


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Makes `PackedLinear` layers before weights are loaded, and reads their tensors afterwards."""

    requires_calibration = False
    quantization_config: PackedConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: object) -> PreTrainedModel:
        put_in_place(model, self.quantization_config.format, self.quantization_config.stored)
        self._shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: object) -> PreTrainedModel:
        # Older transformers leave shapes unchecked when there is a quantizer.
        odd = [
            f"{name} is {list(tensor.shape)} and should be {list(self._shapes[name])}"
            for name, tensor in model.state_dict().items()
            if name in self._shapes and tensor.shape != self._shapes[name]
        ]
        if odd:
            raise LoadError(f"shapes of {len(odd)} tensors do not fit its config: {few(odd, 2)}")
        read_packed(model, self.quantization_config.format)
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        return model

    def is_serializable(self, *args: object, **kwargs: object) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def put_in_place(model: PreTrainedModel, format: PackedFormat, stored: Mapping[str, Stored]) -> None:
    """Replaces each linear layer that the checkpoint packs. Raises LoadError for packed tensors of other modules."""
    homeless: list[str] = []
    packed = format.layers(stored)
    if not packed:
        raise LoadError(f"its config says {format.name}, but no layer has a {format.parts[0]} of that form")
    for name, tensors in packed.items():
        place = _place_of(model, name)
        empty = {part: _empty(one) for part, one in tensors.items()}
        if place is None:
            if not _put_experts(model, name, empty):
                homeless.append(name)
            continue
        linear = model.get_submodule(place)
        assert isinstance(linear, nn.Linear)
        bias = None
        if linear.bias is not None or f"{name}.bias" in stored:
            bias = torch.empty(linear.out_features, dtype=linear.weight.dtype, device="meta")
        model.set_submodule(place, PackedLinear(linear.in_features, linear.out_features, empty, bias))
    for name, module in model.named_modules():
        left = [of for of, weight in module.named_parameters(recurse=False) if weight.dim() == 3]
        if left and ATTRIBUTE in vars(module):
            raise LoadError(f"packs some weights of {name} and not {few(left)}: take the checkpoint that is not packed")
    if homeless:
        raise LoadError(
            f"packs {few(homeless)}, which are neither linear layers of {type(model).__name__} nor experts in one"
            " tensor: such are not kept packed, so take the checkpoint that is not packed"
        )


def _put_experts(model: PreTrainedModel, name: str, empty: Mapping[str, Tensor]) -> bool:
    """Whether this is the weight of experts behind transformers' interface, which then are packed ones."""
    prefix = f"{model.base_model_prefix}."
    for place in (name, prefix + name, name.removeprefix(prefix)):
        path, _, end = place.rpartition(".")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        weight = getattr(module, end, None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 3 and hasattr(module, "is_transposed"):
            put_experts(module, end, empty, {part: f"{end}_{part}" for part in empty})
            return True
    return False


def _place_of(model: PreTrainedModel, name: str) -> str | None:
    """The linear layer that a checkpoint calls so, with or without the model's prefix."""
    prefix = f"{model.base_model_prefix}."
    for place in (name, prefix + name, name.removeprefix(prefix)):
        try:
            if isinstance(model.get_submodule(place), nn.Linear):
                return place
        except AttributeError:
            continue
    return None


def _empty(stored: Stored) -> Tensor:
    dtype = _DTYPES.get(stored.dtype)
    if dtype is None:
        raise LoadError(f"packs numbers in {stored.dtype}, which are not known")
    return torch.empty(stored.shape, dtype=dtype, device="meta")


def read_packed(model: PreTrainedModel, format: PackedFormat) -> None:
    """Gives each packed layer the meaning of its tensors. Raises LoadError that names the layer."""
    for name, layer in named_packed(model).items():
        if any(tensor.is_meta for tensor in layer.tensors.values()):
            continue  # missing, which is told of all tensors together
        try:
            layer.read(format.weight)
        except (LoadError, KeyError) as error:
            why = error.message if isinstance(error, LoadError) else f"{error.args[0]} is missing"
            raise LoadError(f"{name} does not fit {format.name}: {why}") from error
