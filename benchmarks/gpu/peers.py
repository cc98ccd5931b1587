"""transformers by itself with the same model and the same queries: static batches, continuous batching."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from baton.loader.loaded import Loaded

from .asks import Ask
from .models import stock


def static_batches(loaded: Loaded, asks: Sequence[Ask], rows: int, cap: float) -> dict[str, Any]:
    """transformers' `generate`, so many at a time in order, padded on the left, until the cap."""
    tokens, began = 0, time.perf_counter()
    done = 0
    with stock(loaded.model), torch.inference_mode():
        while done < len(asks) and time.perf_counter() - began < cap:
            some = asks[done : done + rows]
            width = max(len(ask.prompt) for ask in some)
            ids = torch.zeros(len(some), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, ask in enumerate(some):
                ids[row, width - len(ask.prompt) :] = torch.tensor(ask.prompt)
                mask[row, width - len(ask.prompt) :] = 1
            config = GenerationConfig(
                do_sample=False, max_new_tokens=max(ask.tokens for ask in some), eos_token_id=None, pad_token_id=0
            )
            loaded.model.generate(
                ids.to(loaded.device), attention_mask=mask.to(loaded.device), generation_config=config
            )
            tokens += sum(ask.tokens for ask in some)
            done += len(some)
    seconds = time.perf_counter() - began
    name = "transformers generate, static batches"
    whole = done >= len(asks)
    return {"policy": name, "tokens/s": tokens / seconds, "seconds": seconds, "tokens": tokens, "whole": whole}


def continuous(loaded: Loaded, asks: Sequence[Ask], rows: int, cap: float) -> dict[str, Any]:
    """transformers' continuous batching with its own defaults, and as many rows as we have."""
    from transformers.generation import ContinuousBatchingConfig

    settings: dict[str, Any] = {"max_requests_per_batch": rows}
    if loaded.device.type == "cpu":
        settings |= {"num_blocks": 4 * rows, "max_batch_tokens": 64, "auto_switch_to_flash": False}
    else:
        settings |= {"use_cuda_graph": True, "use_async_batching": True}
    generation = GenerationConfig(
        do_sample=False, max_new_tokens=max(ask.tokens for ask in asks), eos_token_id=-1, pad_token_id=0
    )
    with stock(loaded.model):
        known = {one.name for one in dataclasses.fields(ContinuousBatchingConfig)}
        config = ContinuousBatchingConfig(**{name: value for name, value in settings.items() if name in known})
        manager = loaded.model.init_continuous_batching(generation, config)
        manager.start()
        try:
            # Compilation and capture at the start are not measured.
            _finished(manager, asks[:2], 60.0)
            began = time.perf_counter()
            tokens, whole = _finished(manager, asks, cap)
            seconds = time.perf_counter() - began
        finally:
            manager.stop(block=True, timeout=10)
    figures = {"policy": "transformers continuous batching", "tokens/s": tokens / seconds, "seconds": seconds}
    return {**figures, "tokens": tokens, "whole": whole}


def _finished(manager: Any, asks: Sequence[Ask], cap: float) -> tuple[int, bool]:
    """Tokens of queries that finished within the cap."""
    began = time.perf_counter()
    names = {manager.add_request(ask.prompt, max_new_tokens=ask.tokens, eos_token_id=-1) for ask in asks}
    tokens = 0
    while names and time.perf_counter() - began < cap:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("continuous batching ended by itself")
        elif result.error is not None:
            raise RuntimeError(result.error)
        elif result.is_finished() and result.request_id in names:
            names.discard(result.request_id)
            tokens += len(result.generated_tokens)
    return tokens, not names
