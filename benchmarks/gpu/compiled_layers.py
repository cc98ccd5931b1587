"""Seconds to compile decode steps of several sizes, one layer for all or the whole model; and how far off they are.

On the CPU, where inductor needs g++; sizes and counts are meaningful, seconds are not.

    TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 python -m benchmarks.gpu.compiled_layers --layers 28 --whole
"""

from __future__ import annotations

import argparse
import random
import time
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from baton.cuda import compiled_layers as regions
from baton.cuda.decode_steps import Slot, Steps
from baton.cuda.ragged_attention import InTorch
from baton.kv.rectangle import Rectangle
from baton.loader.choose import choose
from baton.model import hooked
from baton.model.forward import TorchForward

SIZES = (1, 2, 4, 8)
TOKENS = 39


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--whole", action="store_true", help="the model whole as well, for each size")
    parser.add_argument("--loose", action="store_true", help="not rounded where the model rounds")
    args = parser.parse_args()
    if args.loose:
        regions.OPTIONS.clear()
    forward = choose(_model(args.layers, getattr(torch, args.dtype)), native=False).forward
    assert isinstance(forward, TorchForward)
    expected = _drawn(_steps(forward))
    compiled = _steps(forward, "inductor")
    _compile(compiled, "layers, one for all")
    got = _drawn(compiled)
    worst = max(float((a - b).abs().max() / b.abs().max()) for (_, a), (_, b) in zip(got, expected, strict=True))
    same = sum(
        a == b for (mine, _), (stock, _) in zip(got, expected, strict=True) for a, b in zip(mine, stock, strict=True)
    )
    print(f"logits differ by {worst:.1e} of the largest; {same} of {TOKENS * SIZES[-1]} tokens are the same")
    if args.whole:
        hooked.call = torch.compile(hooked.call, fullgraph=True, dynamic=False)
        _compile(_steps(forward), "the model whole")


def _model(layers: int, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    config = Qwen3Config(**shape, num_hidden_layers=layers, intermediate_size=512, vocab_size=4000)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


def _steps(forward: TorchForward, compiled: str | None = None) -> Steps:
    make = partial(Rectangle, forward.geometry.shapes, capacity=8, columns=64, device=torch.device("cpu"))
    rectangle = make(dtype=forward.hooked.model.dtype)
    return Steps(forward.hooked, rectangle, InTorch(), capture=False, compiled=compiled)


def _compile(steps: Steps, name: str) -> None:
    counters.clear()
    began = time.perf_counter()
    for size in SIZES:
        steps.launch([Slot(row, 7, 1) for row in range(size)])
        print(f"{name}: {size} slots after {time.perf_counter() - began:.1f} s", flush=True)
    print(f"{name}: {counters['stats']['unique_graphs']} graphs")


def _drawn(steps: Steps) -> list[tuple[list[int], torch.Tensor]]:
    """Tokens and logits of some rows, step after step; all are fed the same, so that each step is compared alone."""
    dice, drawn = random.Random(3), []
    for stop in range(1, TOKENS + 1):
        step = steps.launch([Slot(row, dice.randrange(4000), stop) for row in range(SIZES[-1])])
        drawn.append((step.tokens(), step.logits.clone()))
    return drawn


if __name__ == "__main__":
    main()
