"""What number formats of weights change: outputs of one product, and a model's logits.

    python -m benchmarks.cpu.format_errors models/qwen06b [--write docs/benchmarks.md]

Product: 64 rows of 2,048 inputs meet 512 outputs with normal weights; the error is that of all outputs together,
relative to the float64 product (root mean squares). "rounded weights": against the product with the packed weights'
own numbers, so that what is left is the rounding of activations. Logits: of two texts of random tokens, relative to the
stock model's in float32 with the checkpoint's own weights.
"""

from __future__ import annotations

import gc
from ctypes import byref
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from baton.loader.choose import choose
from baton.loader.formats import FORMATS
from baton.loader.selfcheck import our_logits, short_texts, stock_logits
from baton.native import library as native
from baton.native.packing import AS_SAVED, Packing, aligned
from benchmarks.report import flags, parsed, processor, table, tell

NAMES: dict[str, tuple[torch.dtype, str]] = {
    "float32": (torch.float32, "none"),
    "bfloat16": (torch.bfloat16, "none"),
    "float16": (torch.float16, "none"),
    "int8": (torch.float32, "int8"),
    "int4:exact": (torch.float32, "int4:exact"),
    "int4": (torch.float32, "int4"),
}
ROWS, INPUTS, OUTPUTS = 64, 2048, 512


def inputs() -> dict[str, Tensor]:
    """Rows whose numbers are normal, have heavy tails (t with 3 degrees), or one channel in 64 ten times as large."""
    random = np.random.default_rng(0)
    normal = random.standard_normal((ROWS, INPUTS))
    outliers = normal.copy()
    outliers[:, ::64] *= 10
    kinds = {"normal": normal, "heavy tails": random.standard_t(3, (ROWS, INPUTS)), "outliers": outliers}
    return {name: torch.from_numpy(some).float() for name, some in kinds.items()}


def product(weight: Tensor, packing: Packing, x: Tensor) -> tuple[Tensor, Tensor]:
    """What native products give, and the numbers of the packed weight."""
    library, kernels = native.library, native.best()
    assert library is not None and kernels is not None
    room = torch.empty(packing.bytes_of(library, kernels, weight) + 64, dtype=torch.uint8)
    packed = packing.pack(library, kernels, weight, aligned(room.data_ptr()))
    numbers, y = torch.empty(OUTPUTS, INPUTS), torch.empty(len(x), OUTPUTS)
    library.baton_unpack(kernels, byref(packed), 0, OUTPUTS, numbers.data_ptr())
    library.baton_product(kernels, byref(packed), x.data_ptr(), len(x), None, y.data_ptr())
    return y, numbers


def off(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def products() -> tuple[list[list[str]], dict[str, Any]]:
    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0))
    rows, figures = [], {}
    for name, (dtype, quantize) in NAMES.items():
        packing = FORMATS[quantize].packing if quantize != "none" else AS_SAVED
        errors = []
        for x in inputs().values():
            y, numbers = product(weight.to(dtype), packing, x)
            errors += [off(y, x.double() @ weight.double().t()), off(y, x.double() @ numbers.double().t())]
        rows.append([name, *(f"{error:.3%}" if error > 1e-5 else f"{error:.0e}" for error in errors)])
        figures[name] = errors
    return rows, figures


def logits_of(folder: str) -> tuple[list[list[str]], dict[str, Any]]:
    expected: Tensor | None = None
    rows, figures = [], {}
    for name, (dtype, quantize) in NAMES.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
        texts = short_texts(model)
        if expected is None:
            assert dtype is torch.float32
            expected = torch.cat(stock_logits(model, texts)).double()
        forward = choose(model, format=FORMATS[quantize], release=True).forward
        ours = torch.cat(our_logits(model, forward, texts)).double()
        greatest = float((ours - expected).abs().max() / expected.abs().max())
        same = float((ours.argmax(-1) == expected.argmax(-1)).double().mean())
        figures[name] = {"rms": off(ours, expected), "greatest": greatest, "same": same}
        rows.append([name, f"{off(ours, expected):.2g}", f"{greatest:.2g}", f"{same:.0%}"])
        del model, forward
        gc.collect()
    return rows, figures


def main() -> None:
    parser = flags(__doc__, "format_errors")
    parser.add_argument("folder", nargs="?", help="of a checkpoint; without one, products alone")
    args = parsed(parser)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows, figures = products()
    kinds = [f"{name}{of}" for name in inputs() for of in ("", ", rounded weights")]
    lines = [f"Outputs of a product; {processor()}.", "", *table(("weights", *kinds), rows)]
    figures = {"products": figures}
    if args.folder:
        rows, figures["logits"] = logits_of(args.folder)
        head = ("weights", "of all logits", "greatest, of the largest logit", "same best token")
        lines += ["", f"Logits of {args.folder}.", "", *table(head, rows)]
    tell(args, lines, figures)


if __name__ == "__main__":
    main()
