"""Steps and prompts of recurrent models: native in each format against torch, in turn, and the bytes they must move.

    python -m benchmarks.cpu.states_step [--shapes lfm2-350m mamba2-130m gated_delta] [--layers 0] [--rows 1 8]
        [--formats none int8 int4] [--prompt 128] [--turns 5] [--threads 1] [--write docs/benchmarks.md]

The shapes are LFM2-350M's and 1.2B's (short convolutions and attention), Granite-4-H-tiny's (Mamba 2 and experts),
Mamba2-130M's, and layers like Qwen3.5's (gated delta rule, 16 heads of keys and 32 of values of 128 numbers, hidden
2048, dense), in bfloat16 with random weights and a vocabulary of 8,192. Bytes: the weights that products read, and of
each row its states, read once and written once. The bandwidth is the best of several sums of a large tensor in this
run. A prompt is timed beside that of a dense model whose products multiply as many numbers. Beside busy neighbours only
one thread can be timed, and its processor time says more than the clock.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from baton.model.port import Forward
from benchmarks.cpu.native_step import read_bandwidth
from benchmarks.cpu.steps_in_turn import PLAIN, config_of, in_torch, native, prompts, steps
from benchmarks.report import command, processor, write_section

_LFM2: dict[str, Any] = {
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "layer_types": ["conv", "conv", "full_attention"] * 5 + ["conv"],
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2-350m": ("lfm2", {**_LFM2, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 6656}),
    "lfm2-1.2b": ("lfm2", {**_LFM2, "hidden_size": 2048, "num_attention_heads": 32, "intermediate_size": 12288}),
    "granite-4-h-tiny": (
        "granitemoehybrid",
        {
            **{"hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 4},
            # Of 40, of which four attend.
            **{"num_hidden_layers": 6, "layer_types": [*["mamba"] * 5, "attention"]},
            **{"num_local_experts": 64, "num_experts_per_tok": 6, "intermediate_size": 512},
            **{"shared_intermediate_size": 1024, "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 128},
            **{"mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_expand": 2, "position_embedding_type": "nope"},
        },
    ),
    "mamba2-130m": (
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
    parser.add_argument("--write", type=Path)
    parser.add_argument("--section", default="states_step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    bandwidth = read_bandwidth()
    speed = f"{args.threads} threads; reading {bandwidth / 1e9:.1f} GB/s"
    lines = [f"{processor()}, {speed}. Medians of {args.turns} turns.", ""]
    for shape in args.shapes:
        model = model_of(shape, args.layers)
        plain = in_torch(model)
        forwards: dict[str, Forward] = {"torch": plain}
        for name in args.formats:
            forwards[PLAIN if name == "none" else name] = native(model, plain, name)
        lines += [f"The shape of {shape}, {model.config.num_hidden_layers} layers:", ""]
        for rows in args.rows:
            lines += [*steps(forwards, model, rows, args.turns, bandwidth, 32), ""]
        if args.prompt:
            lines += [*prompts(forwards, model, args.prompt, args.turns), ""]
    lines.append(f"Again: `{command()}`")
    print("\n".join(lines))
    if args.write:
        write_section(args.write, args.section, "\n".join(lines))


def model_of(shape: str, layers: int) -> PreTrainedModel:
    kind, more = SHAPES[shape]
    layers = layers or more["num_hidden_layers"]
    more = {**more, "num_hidden_layers": layers}
    more |= {"layer_types": more["layer_types"][:layers]} if "layer_types" in more else {}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(kind, more), dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
