"""The models that are measured: real shapes with random weights, made on the device."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from baton.cuda import ragged_attention as ragged
from baton.cuda.float8 import quantize
from baton.cuda.forward import CudaForward
from baton.loader.choose import choose
from baton.loader.formats import FORMATS
from baton.loader.loaded import Loaded
from baton.model.forward import TorchForward
from baton.model.tokenizer import ModelTokenizer
from benchmarks.make_shape import tokenizer


def _llama(**changes: Any) -> Any:
    shape = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    shape |= {"intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192}
    return LlamaConfig(**{**shape, "rope_theta": 500000.0, "tie_word_embeddings": False, **changes})


def _qwen(**changes: Any) -> Any:
    shape = {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
    shape |= {"head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "max_position_embeddings": 8192}
    return Qwen3Config(**{**shape, "tie_word_embeddings": True, **changes})


def _mixture(**changes: Any) -> Any:
    """A few of its 48 layers."""
    shape = {"hidden_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 4}
    shape |= {"head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936, "max_position_embeddings": 8192}
    shape |= {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True}
    if changes:
        changes = {**changes, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return Qwen3MoeConfig(**{**shape, "tie_word_embeddings": False, **changes})


MIXTURE = "qwen3-30b-a3b-4-layers"
_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
_TINY |= {"head_dim": 16, "intermediate_size": 96, "vocab_size": 320, "max_position_embeddings": 256}
SHAPES: dict[str, Callable[..., Any]] = {"llama-3.1-8b": _llama, "qwen3-0.6b": _qwen, MIXTURE: _mixture}


def build(name: str, device: torch.device, tiny: bool, *, float8: bool = False) -> Loaded:
    """A model with random weights, hooked as `load` does it. `float8`: its linear layers."""
    config = SHAPES[name](**(_TINY if tiny else {}))
    began = time.perf_counter()
    torch.manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" and not float8 else torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    if float8:
        quantize(model, device)
    made = time.perf_counter() - began
    choice = choose(model, native=device.type == "cuda", format=FORMATS["float8" if float8 else "none"])
    if isinstance(choice.forward, TorchForward) and device.type == "cpu":
        choice = replace(choice, forward=CudaForward(choice.forward, ragged.InTorch()))
    print(f"{name}: made in {made:.1f} s, hooked in {time.perf_counter() - began - made:.1f} s", flush=True)
    print(f"{name}: {choice.description}", flush=True)
    return Loaded(
        name=name,
        model=model,
        choice=choice,
        tokenizer=ModelTokenizer(tokenizer(config.vocab_size), config.vocab_size),
        end_ids=(),
        context_tokens=config.max_position_embeddings,
        context_source="max_position_embeddings in its config",
        dtype=dtype,
        device=device,
        parameters=sum(p.numel() for p in model.parameters()),
        stamp=name,
    )


@contextlib.contextmanager
def stock(model: Any) -> Iterator[None]:
    """The model with an attention of its own."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(ours)


def free(loaded: Loaded) -> None:
    """Lets go of the last engine's rectangle and its graphs."""
    cuda_forward(loaded).release()
    collect(loaded.device)


def cuda_forward(loaded: Loaded) -> CudaForward:
    """The model's forward, which must have decode steps of constant shape."""
    forward = loaded.forward
    assert isinstance(forward, CudaForward), loaded.description
    assert forward.ragged is not None, loaded.description
    return forward


def run_by(loaded: Loaded, forward: CudaForward) -> Loaded:
    """The same model, run by this forward."""
    return replace(loaded, choice=replace(loaded.choice, forward=forward))


def collect(device: torch.device) -> None:
    """Gives back to the device what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
