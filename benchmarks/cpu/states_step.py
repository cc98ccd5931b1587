"""Steps and prompts of recurrent models: native in each format against torch, in turn, and the bytes they must move.

    python -m benchmarks.cpu.states_step [--shapes lfm2 mamba2 gated_delta] [--layers 0] [--rows 1 8]
        [--formats none int8 int4] [--prompt 128] [--turns 5] [--threads 1]

The shapes are LFM2-350M's (short convolutions and attention), Mamba2-130M's, and layers like Qwen3.5's (gated delta
rule, 16 heads of keys and 32 of values of 128 numbers, hidden 2048, dense), in bfloat16 with random weights and a
vocabulary of 8,192. Bytes: the weights that products read, and of each row its states, read once and written once. The
bandwidth is the best of several sums of a large tensor in this run. Beside busy neighbours only one thread can be
timed, and its processor time says more than the clock.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from baton.loader.choose import choose
from baton.loader.formats import FORMATS
from baton.model.forward import TorchForward
from baton.model.port import Forward
from baton.model.visibility import Span
from baton.native.forward import NativeForward
from baton.native.lower import lower
from baton.native.program import Program
from baton.native.record import record
from benchmarks.cpu.native_step import read_bandwidth, rectangle_of
from benchmarks.report import command, processor, table

VOCABULARY = 8192
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": (
        "lfm2",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "intermediate_size": 6656,
            "layer_types": ["conv", "conv", "full_attention"] * 5 + ["conv"],
        },
    ),
    "mamba2": (
        "mamba2",
        {
            "hidden_size": 768,
            "num_hidden_layers": 24,
            "num_heads": 24,
            "head_dim": 64,
            "state_size": 128,
            "n_groups": 1,
            "expand": 2,
        },
    ),
    "gated_delta": (
        "qwen3_next",
        {
            "hidden_size": 2048,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "intermediate_size": 6144,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "num_experts": 0,
            "mlp_only_layers": list(range(64)),
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=[*SHAPES], choices=[*SHAPES])
    parser.add_argument("--layers", type=int, default=0, help="0: as many as the shape has")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--formats", nargs="+", default=["none", "int8", "int4"], choices=["none", "int8", "int4"])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt; 0: none is timed")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    bandwidth = read_bandwidth()
    print(
        f"{processor()}\n\n{args.threads} threads; reading {bandwidth / 1e9:.1f} GB/s. Medians of {args.turns} turns.\n"
    )
    for shape in args.shapes:
        model = model_of(shape, args.layers)
        plain = choose(model, native=False).forward
        assert isinstance(plain, TorchForward)
        forwards: dict[str, Forward] = {"torch": plain}
        for name in args.formats:
            packing = FORMATS[name].packing
            program = Program(
                lower(record(model, plain.geometry.shapes)),
                plain.geometry,
                model.dtype,
                threads=args.threads,
                packing=packing,
            )
            forwards["bfloat16" if name == "none" else name] = NativeForward(program, plain)
        for rows in args.rows:
            steps = [Span(row, 32, 1) for row in range(rows)]
            print("\n".join(compared(f"{shape}, {rows} rows", forwards, model, steps, args.turns, bandwidth)), "\n")
        if args.prompt:
            fill = [Span(0, 0, args.prompt)]
            print(
                "\n".join(compared(f"{shape}, prompt of {args.prompt}", forwards, model, fill, args.turns, bandwidth)),
                "\n",
            )
    print(f"Again: `{command()}`")


def model_of(shape: str, layers: int) -> PreTrainedModel:
    kind, more = SHAPES[shape]
    if layers:
        more = {**more, "num_hidden_layers": layers}
        more |= {"layer_types": more["layer_types"][:layers]} if "layer_types" in more else {}
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, max_position_embeddings=4096, tie_word_embeddings=False, **more
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def compared(
    what: str, forwards: dict[str, Forward], model: PreTrainedModel, spans: list[Span], turns: int, bandwidth: float
) -> list[str]:
    rows = len(spans)
    rectangles = {name: rectangle_of(one, rows, spans[0].stop + 1, torch.bfloat16) for name, one in forwards.items()}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in forwards}
    for turn in range(turns + 1):
        tokens = [(37 * turn + 101 * at) % (VOCABULARY - 3) + 3 for at in range(sum(span.count for span in spans))]
        for name, forward in forwards.items():
            began, computing = time.perf_counter(), time.process_time()
            run = forward.decode if spans[0].count == 1 else forward.fill
            run(rectangles[name], spans, tokens)[1].commit()
            took[name].append((time.perf_counter() - began, time.process_time() - computing))
    clock = {name: statistics.median(wall for wall, _ in some[1:]) for name, some in took.items()}
    computed = {name: statistics.median(spent for _, spent in some[1:]) for name, some in took.items()}
    lines = []
    for name, forward in forwards.items():
        floor = bytes_moved(model, forward, rows, _bits(name)) / bandwidth
        ratios = [f"{computed[name] / floor:.2f}x", f"{computed['torch'] / computed[name]:.1f}x"]
        lines.append([name, f"{1e3 * clock[name]:.1f}", f"{1e3 * computed[name]:.1f}", *ratios])
    head = (what, "ms", "processor ms", "processor's of the time to move its bytes", "torch's over it")
    return table(head, lines)


def bytes_moved(model: PreTrainedModel, forward: Forward, rows: int, bits: float) -> float:
    weights = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and p.dim() == 2)
    states = sum(
        math.prod(state.shape) * state.dtype.itemsize for one in forward.geometry.shapes for state in one.states
    )
    return weights * bits / 8 + 2 * rows * states


def _bits(name: str) -> float:
    return FORMATS[name].packing.bits or 16 if name in FORMATS else 16


if __name__ == "__main__":
    main()
