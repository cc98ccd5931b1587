"""Steps of a mixture of experts: native in each format against torch, in turn, and the bytes that they must read.

    python -m benchmarks.cpu.experts_step [--shape qwen3-30b-a3b] [--layers 2] [--columns 32] [--rows 1 8]
        [--formats none int8 int4 mxfp4] [--prompt 256] [--turns 7] [--threads 1]
        [--write docs/benchmarks.md --section experts_step]

The layers' shape is that of a real mixture with random weights, in bfloat16, and a vocabulary of 8,192: Qwen3-30B-A3B
(128 experts of 2048 -> 2 x 768 -> 2048, 8 for a token), gpt-oss-20b, or DeepSeek-V2-Lite, whose layers keep latents.
Each row is fed another token, and each turn others, so that rows choose different experts. Bytes: the weights that all
tokens read, and those of E (1 - (1 - k/E)^rows) of a layer's E experts, as if all were equally likely. The bandwidth is
the best of several sums of a large tensor in this run. A prompt is timed beside that of a dense model whose products
multiply as many numbers. Beside busy neighbours only one thread can be timed, and its
processor time says more than the clock.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from baton.loader.mxfp4 import Mxfp4
from baton.model.packed_experts import put_experts
from baton.model.packed_layers import packed_layers
from baton.model.port import Forward
from benchmarks.cpu.native_step import read_bandwidth
from benchmarks.cpu.steps_in_turn import MXFP4, PLAIN, config_of, in_torch, native, prompts, steps
from benchmarks.report import command, processor, write_section

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-30b-a3b": (
        "qwen3_moe",
        {
            **{"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128},
            **{"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True},
        },
    ),
    "gpt-oss-20b": (
        "gpt_oss",
        {
            **{"hidden_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64},
            **{"intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4},
        },
    ),
    "deepseek-v2-lite": (
        "deepseek_v2",
        {
            **{"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None},
            **{"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128},
            **{"moe_intermediate_size": 1408, "n_routed_experts": 64, "num_experts_per_tok": 6},
            **{"n_shared_experts": 2, "first_k_dense_replace": 0, "topk_method": "greedy"},
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--columns", type=int, default=32, help="that each row has already")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    formats = ["none", "int8", "int4"]
    parser.add_argument("--formats", nargs="+", default=formats, choices=[*formats, MXFP4])
    parser.add_argument("--prompt", type=int, default=0, help="tokens of a prompt; 0: none is timed")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", type=Path)
    parser.add_argument("--section", default="experts_step")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    model = model_of(args.shape, args.layers)
    plain = in_torch(model)
    forwards: dict[str, Forward] = {"torch": plain}
    for name in args.formats:
        of = model_of(args.shape, args.layers, packed=True) if name == MXFP4 else model
        forwards[PLAIN if name == "none" else name] = native(of, plain, name)
        del of
    bandwidth = read_bandwidth()
    lines = [
        f"{args.layers} layers of the shape of {args.shape}, {args.columns} columns a row. {processor()}.",
        "",
        f"{torch.get_num_threads()} threads; reading {bandwidth / 1e9:.1f} GB/s. Medians of {args.turns} turns.",
        "",
    ]
    for rows in args.rows:
        lines += [*steps(forwards, model, rows, args.turns, bandwidth, args.columns), ""]
    if args.prompt:
        lines += [*prompts(forwards, model, args.prompt, args.turns), ""]
    lines.append(f"Again: `{command()}`")
    print("\n".join(lines))
    if args.write:
        write_section(args.write, args.section, "\n".join(lines))


def model_of(shape: str, layers: int, *, packed: bool = False) -> PreTrainedModel:
    """`packed`: with experts in MXFP4, of random codes."""
    kind, sizes = SHAPES[shape]
    config = config_of(kind, {**sizes, "num_hidden_layers": layers})
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        if packed:
            _pack_experts(model)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = type(module)(config).inv_freq
            module.original_inv_freq = module.inv_freq
    # One block of random numbers again and again, because drawing all of them would take minutes.
    block = 0.02 * torch.randn((1 << 20) + 8191, generator=torch.Generator().manual_seed(0))
    for at, parameter in enumerate(model.parameters()):
        if parameter.dim() == 1:
            parameter.fill_(1)
            continue
        for index, piece in enumerate(parameter.view(-1).split(1 << 20)):
            start = (1009 * index + 7919 * at) % 8191
            piece.copy_(block[start : start + len(piece)])
    format = Mxfp4("MXFP4", "")
    for layer in packed_layers(model):
        for name, tensor in layer.tensors.items():
            tensor.random_(0, 256) if name == "blocks" else tensor.fill_(120)
        layer.read(format.weight)
    return model


def _pack_experts(model: PreTrainedModel) -> None:
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.dim() == 3 and hasattr(module, "is_transposed"):
                outputs, inputs = weight.shape[1:][::-1] if module.is_transposed else weight.shape[1:]
                groups = (len(weight), outputs, inputs // 32)
                shapes = {"blocks": (*groups, 16), "scales": groups}
                empty = {part: torch.empty(sizes, dtype=torch.uint8) for part, sizes in shapes.items()}
                put_experts(module, name, empty, {part: f"{name}_{part}" for part in shapes})


if __name__ == "__main__":
    main()
