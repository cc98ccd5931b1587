"""The host's work for a row that leaves a device and comes back, and for stored blocks: calls, not copies.

On the CPU with rows so narrow that copying them takes no time; what is left is also done by a GPU's host.

    python -m benchmarks.gpu.leaving
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from baton.cuda.offload import HostOffload
from baton.cuda.packed_rows import Packed
from baton.cuda.pinned_memory import HostMemory
from baton.kv.prefix import prefix_store
from baton.kv.rectangle import LayerShape, Rectangle
from baton.testing.late_lane import LateLane

LAYERS, TOKENS, TURNS = 36, 1024, 50


def main() -> None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    of: dict[str, Any] = {"columns": TOKENS + 1, "dtype": torch.bfloat16, "device": cpu}
    rectangle = Rectangle([LayerShape(1, 8, 8)] * LAYERS, capacity=2, **of)
    rectangle.claim(0, TOKENS)
    memory = HostMemory(2**28, pin=lambda size: torch.empty(size, dtype=torch.uint8))
    offload = HostOffload(LateLane(10**9), memory, 2**28)

    def out() -> None:
        offload.release(Packed(offload.out(rectangle.view(0)).pieces))

    def store() -> None:
        stored = prefix_store(rectangle, offload=offload)
        stored.limit(2**28)
        stored.store(range(TOKENS + 1), rectangle.view(0), TOKENS)
        stored.limit(0)

    packed = Packed(offload.out(rectangle.view(0)).pieces)

    def into() -> None:
        offload.into(packed, rectangle.claim(1, TOKENS)).land()

    for name, run in (("out", out), ("in", into), (f"{TOKENS} tokens stored", store)):
        print(f"{name}: {1e3 * _seconds(run):.2f} ms of the host, {LAYERS} layers")


def _seconds(run: Callable[[], None]) -> float:
    seconds = []
    for _ in range(TURNS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
