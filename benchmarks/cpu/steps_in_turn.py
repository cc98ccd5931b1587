"""Steps and prompts of several ways to run one model, in turn, beside the bytes and products that they need."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen3Config

from baton.loader.choose import choose
from baton.loader.formats import FORMATS
from baton.model.forward import TorchForward
from baton.model.packed_linear import not_computed
from baton.model.port import Forward
from baton.model.visibility import Span
from baton.native.forward import NativeForward
from baton.native.lower import lower
from baton.native.program import Program
from baton.native.record import record
from benchmarks.cpu.native_step import rectangle_of
from benchmarks.report import table

VOCABULARY = 8192
PLAIN = "bfloat16"
MXFP4 = "mxfp4"
"""Experts as gpt-oss has them, with 4.25 bits a number; all else in bfloat16."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_HEAD = 128


def in_torch(model: PreTrainedModel) -> TorchForward:
    forward = choose(model, native=False).forward
    assert isinstance(forward, TorchForward)
    return forward


def native(model: PreTrainedModel, plain: TorchForward, format: str) -> NativeForward:
    packing = FORMATS[format if format in FORMATS else "none"].packing
    with not_computed():
        graph = lower(record(model, plain.geometry.shapes))
    program = Program(graph, plain.geometry, model.dtype, threads=torch.get_num_threads(), packing=packing)
    return NativeForward(program, plain)


def dense_like(model: PreTrainedModel) -> PreTrainedModel:
    """A dense model with as many layers, of the same width, whose products multiply as many numbers for a token."""
    hidden, layers = model.config.hidden_size, model.config.num_hidden_layers
    heads, few = hidden // _HEAD, max(1, hidden // _HEAD // 4)
    a_layer = (multiplied(model) - VOCABULARY * hidden) / layers - 2 * hidden * _HEAD * (heads + few)
    config = Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=few,
        head_dim=_HEAD,
        intermediate_size=max(64, round(a_layer / (3 * hidden) / 64) * 64),
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    dense: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    return dense.eval().requires_grad_(False)


def _chosen(model: PreTrainedModel, tokens: int) -> float:
    """The share of a layer's experts that so many tokens choose, as if all were equally likely."""
    experts = next((getattr(model.config, name) for name in _EXPERTS if getattr(model.config, name, 0)), 0)
    return 1 - (1 - model.config.num_experts_per_tok / experts) ** tokens if experts else 0.0


def multiplied(model: PreTrainedModel) -> float:
    """Numbers of weights that products multiply for one token."""
    return 8 * _weight_bytes(model, 1, 1, 1)


def _weight_bytes(model: PreTrainedModel, rows: int, bits: float, of_experts: float) -> float:
    total = 0.0
    for name, parameter in model.named_parameters():
        if "embed" not in name and "conv1d" not in name and parameter.dim() > 1:
            share = of_experts * _chosen(model, rows) if parameter.dim() == 3 and "conv" not in name else bits
            total += parameter.numel() / 8 * share
    return total


def bytes_moved(model: PreTrainedModel, forward: Forward, rows: int, name: str) -> float:
    """Weights that tokens of so many rows read, and each row's states, read once and written once."""
    bits = float(FORMATS[name].packing.bits or 16) if name in FORMATS else 16.0
    states = sum(
        math.prod(state.shape) * state.dtype.itemsize for one in forward.geometry.shapes for state in one.states
    )
    return _weight_bytes(model, rows, bits, 4.25 if name == MXFP4 else bits) + 2 * rows * states


Took = dict[str, tuple[float, float]]
"""Seconds of the clock and of the processor, medians."""


def timed(forwards: dict[str, Forward], spans: list[Span], turns: int) -> Took:
    """Each in turn, with other tokens in each turn, so that rows choose other experts."""
    rows, columns = len(spans), spans[0].stop + 1
    rectangles = {name: rectangle_of(one, rows, columns, torch.bfloat16) for name, one in forwards.items()}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in forwards}
    for turn in range(turns + 1):
        count = sum(span.count for span in spans)
        tokens = [(37 * turn + 101 * at) % (VOCABULARY - 3) + 3 for at in range(count)]
        for name, forward in forwards.items():
            began, computing = time.perf_counter(), time.process_time()
            run = forward.decode if spans[0].count == 1 else forward.fill
            run(rectangles[name], spans, tokens)[1].commit()
            took[name].append((time.perf_counter() - began, time.process_time() - computing))
    return {
        name: (statistics.median(wall for wall, _ in some[1:]), statistics.median(spent for _, spent in some[1:]))
        for name, some in took.items()
    }


def steps(
    forwards: dict[str, Forward], model: PreTrainedModel, rows: int, turns: int, bandwidth: float, columns: int
) -> list[str]:
    """The table of steps of so many rows. `bandwidth`: bytes a second. The way named torch is compared with."""
    took = timed(forwards, [Span(row, columns, 1) for row in range(rows)], turns)
    lines = []
    for name, (clock, computed) in took.items():
        floor = bytes_moved(model, forwards[name], rows, name) / bandwidth
        times = [f"{1e3 * clock:.1f}", f"{1e3 * computed:.1f}"]
        ratios = [f"{1e3 * floor:.1f}", f"{clock / floor:.2f}x", f"{took['torch'][0] / clock:.1f}x"]
        lines.append([name, *times, *(["", "", ""] if name == "torch" else ratios)])
    of = f"{rows} row{'s' * (rows > 1)}"
    return table((of, "step ms", "processor ms", "its bytes alone, ms", "of that", "torch's over it"), lines)


def prompts(forwards: dict[str, Forward], model: PreTrainedModel, tokens: int, turns: int) -> list[str]:
    """The table of prompts of so many tokens, each native way beside a dense model in the same format."""
    dense = dense_like(model)
    plain = in_torch(dense)
    named = {name: native(dense, plain, name) for name in forwards if name != "torch"}
    more = multiplied(model) / multiplied(dense)
    both = {**forwards, **{f"dense {name}": one for name, one in named.items()}}
    took = timed(both, [Span(0, 0, tokens)], turns)
    lines = []
    for name in forwards:
        clock = took[name][0]
        rate = [f"{2e-9 * multiplied(model) * tokens / clock:.0f}"]
        if name in named:
            rate += [f"{more * took[f'dense {name}'][0] / clock:.2f}", f"{took['torch'][0] / clock:.1f}x"]
        lines.append([name, f"{1e3 * clock:.0f}", *rate, *[""] * (3 - len(rate))])
    head = (f"prompt of {tokens}", "ms", "GFLOP/s of its products", "of a dense model's", "torch's over it")
    return table(head, lines)


def config_of(kind: str, sizes: dict[str, Any]) -> PreTrainedConfig:
    """The config of a model of this kind, with a small vocabulary."""
    small = {"vocab_size": VOCABULARY, "max_position_embeddings": 4096, "tie_word_embeddings": False}
    return AutoConfig.for_model(kind, **{**small, **sizes})
