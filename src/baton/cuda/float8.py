"""Linear layers in float8 (e4m3): a scale for each output's weights, and one for each token's inputs.

A weight takes one byte, and a decode step reads all of them. The 8-bit numbers themselves are multiplied and summed in
float32 (Micikevicius et al. 2022, FP8 formats for deep learning; torch's row-wise `_scaled_mm`). A token has its own
scale, so that its result does not depend on its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from baton.core.errors import LoadError

try:
    import triton

    from baton.cuda.triton_kernels import float8_rows
except ImportError:
    triton = None

FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FLOAT8).max
# A row of zeros has a scale too.
_LEAST = 1e-12
# The products' operands are aligned to 16 bytes.
_ALIGNED = 16
_BLOCK = 2048


class Float8Linear(nn.Module):
    """The linear layer that it was made from, up to rounding: inputs `[..., in]` in bfloat16 -> `[..., out]`."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        numbers, scales = in_torch(linear.weight.detach().to(device))
        # Not parameters, because a model's dtype is read from its parameters.
        self.register_buffer("weight", numbers, persistent=False)
        self.register_buffer("scale", scales.view(1, -1), persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().to(device), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.reshape(-1, self.in_features)
        numbers, scales = _rows(flat) if flat.is_cuda and triton is not None else in_torch(flat)
        out = torch._scaled_mm(
            numbers,
            self.weight.t(),
            scale_a=scales,
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=inputs.dtype,
            use_fast_accum=True,
        )
        return out.view(*inputs.shape[:-1], self.out_features)


def quantize(model: PreTrainedModel, device: torch.device) -> None:
    """Makes a model's linear layers, except its output layer, float8 on this device, one after the other.

    Raises LoadError if that is not possible, or would leave most of its weights as they are.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        raise LoadError("--quantize float8: it was saved in fewer bits already, leave this out")
    if model.dtype is not torch.bfloat16:
        raise LoadError(f"--quantize float8 computes in bfloat16, not in {model.dtype}")
    before = sum(p.numel() for p in model.parameters())
    head, done = model.get_output_embeddings(), 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            # Some families have their own kinds of linear layers.
            if type(layer) is nn.Linear and layer is not head and _fits(layer):
                setattr(parent, name, Float8Linear(layer, device))
                done += layer.weight.numel()
    outside = {id(p): p.numel() for part in (head, model.get_input_embeddings()) if part for p in part.parameters()}
    others = before - done - sum(outside.values())
    if others > done:
        raise LoadError(f"--quantize float8: only {done} of {before} weights are in linear layers of this family")


def _fits(layer: nn.Linear) -> bool:
    return layer.in_features % _ALIGNED == 0 and layer.out_features % _ALIGNED == 0


def in_torch(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`[n, k]` as float8 numbers, and the factor of each row `[n, 1]` in float32."""
    precise = rows.float()
    scales = (precise.abs().amax(-1, keepdim=True) / _LARGEST).clamp(min=_LEAST)
    return (precise / scales).clamp(-_LARGEST, _LARGEST).to(FLOAT8), scales


@torch.library.custom_op("baton::float8_rows", mutates_args=())
def _rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """As `in_torch`, in one kernel."""
    rows = rows.contiguous()
    count, width = rows.shape
    numbers = torch.empty(count, width, dtype=FLOAT8, device=rows.device)
    scales = torch.empty(count, 1, dtype=torch.float32, device=rows.device)
    if count:
        block = min(_BLOCK, triton.next_power_of_2(width))
        float8_rows[(count,)](rows, numbers, scales, WIDTH=width, BLOCK=block, LEAST=_LEAST, num_warps=8)
    return numbers, scales


@_rows.register_fake
def _(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape, dtype=FLOAT8), rows.new_empty(len(rows), 1, dtype=torch.float32)
