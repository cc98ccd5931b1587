"""How fast this machine reads memory, measured when the engine starts, and the live view that uses it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from baton.compose import EngineHandle
from baton.core.clock import monotonic
from baton.core.footprint import Footprint
from baton.loader.loaded import Loaded
from baton.observe.bottleneck import Machine
from baton.observe.live import Live
from baton.observe.timeline import Timeline

# Far above the caches of nearly all machines; 10 GB/s read it in 10 ms.
_BUFFER_BYTES = 96 * 2**20
_READS = 3
# Settings of models whose steps read only some of the weights; the tokens decide which.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def read_bytes_per_second() -> float:
    """Bytes a second that all of torch's threads read from memory together.

    Takes the best of a few reads, some 0.1 s.
    """
    buffer = torch.zeros(_BUFFER_BYTES // 8, dtype=torch.int64)
    best = float("inf")
    for _ in range(_READS):
        began = time.perf_counter()
        buffer.sum()
        best = min(best, time.perf_counter() - began)
    return _BUFFER_BYTES / best


def machine_of(loaded: Loaded, footprint: Footprint, read_bytes: float) -> Machine:
    """`read_bytes` is 0 if it says nothing: on other devices, and for models of experts."""
    config = loaded.model.config.get_text_config()
    known = loaded.device.type == "cpu" and not any(getattr(config, name, None) for name in _EXPERTS)
    # If the embedding is not the output layer too, a step reads only one of its rows for each token.
    apart = not getattr(config, "tie_word_embeddings", True)
    embedding = getattr(config, "vocab_size", 0) * getattr(config, "hidden_size", 0) if apart else 0
    size = (loaded.format.rounded_bits or 8 * loaded.dtype.itemsize) / 8
    return Machine(
        read_bytes=read_bytes if known else 0.0,
        weight_bytes=int((loaded.parameters - embedding) * size),
        kv_token_bytes=footprint.token_bytes,
    )


def live_view(engine: EngineHandle, timeline: Timeline, read_bytes: float) -> Callable[[int, float], bytes]:
    """Returns what /live/data sends for a serial and a time. `timeline`: a sink of the engine's events."""
    settings, facts = engine.settings, engine.facts
    view = Live(
        timeline,
        monotonic,
        model_name=engine.client.model_name,
        machine=machine_of(engine.loaded, facts.footprint, read_bytes),
        max_rows=settings.max_rows,
        settings={"policy": settings.policy, "device": facts.device, "dtype": facts.dtype},
    )
    return lambda serial, time: view.data(engine.client.stats(), serial, time)
