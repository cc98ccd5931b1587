"""Throughput offline, all queries at once: each policy, and transformers by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from baton.cuda.forward import CudaForward
from baton.loader.loaded import Loaded

from .asks import Ask
from .engine import engine_run
from .models import cuda_forward, free, run_by
from .peers import continuous, static_batches
from .results import Results
from .steps import backend

MOST_SECONDS, LEAST_SECONDS = 40.0, 6.0
"""Of one run; what had come by then is its figure."""
# The share of the remaining time that all runs together may take.
_SHARE = 0.6


def offline(results: Results, loaded: Loaded, asks: Sequence[Ask], rows: int, columns: int, tiny: bool) -> None:
    """Each policy and each peer in turn; if there is time, the two most important ones again."""
    name = f"{loaded.name}: offline"
    cap = max(LEAST_SECONDS, min(MOST_SECONDS, _SHARE * results.left / 8))
    turns = _Turns(results, loaded, asks, rows, columns, tiny, cap)
    # What a first run compiles is no part of any figure.
    results.part(
        f"{name}, warm-up", lambda: engine_run(loaded, asks[:8], rows=rows, columns=columns, cap=cap), needs=cap
    )
    bodies: list[Callable[[], Any]] = [
        lambda: turns.run("baton"),
        lambda: turns.compiled(),
        lambda: turns.run("orca"),
        lambda: turns.peer(continuous),
        lambda: turns.peer(static_batches),
        lambda: turns.run("run_to_completion"),
        lambda: turns.run("baton"),
        lambda: turns.run("orca"),
    ]
    for turn, body in enumerate(bodies):
        so_far = list(turns.measurements)
        results.part(name, body, needs=cap + LEAST_SECONDS)
        if isinstance(results.by_part[name], dict):
            # A part that failed or was left out must not hide successful ones.
            results.by_part[f"{name}, turn {turn}"] = results.by_part[name]
            results.by_part[name] = so_far
            results.write()


@dataclass
class _Turns:
    """Each turn gives what all turns so far have found."""

    results: Results
    loaded: Loaded
    asks: Sequence[Ask]
    rows: int
    columns: int
    tiny: bool
    cap: float
    measurements: list[dict[str, Any]] = field(default_factory=list)

    def run(self, policy: str, more: str = "") -> list[dict[str, Any]]:
        ran = engine_run(self.loaded, self.asks, policy=policy, rows=self.rows, columns=self.columns, cap=self.cap)
        self.measurements.append({**ran, "policy": policy + more})
        return self.measurements

    def peer(self, body: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
        self.measurements.append(body(self.loaded, self.asks, self.rows, self.cap))
        free(self.loaded)
        return self.measurements

    def compiled(self) -> list[dict[str, Any]]:
        """With the compiled step, if that was the faster one."""
        times = [self._step_ms(part) for part in ("steps", "steps compiled")]
        if not self.tiny and not 0.0 < times[1] < times[0]:
            return self.measurements
        forward = cuda_forward(self.loaded)
        how: dict[str, Any] = {"compiled": backend(self.tiny), "experts": forward.experts, "varlen": forward.varlen}
        compiled = CudaForward(forward.torch_forward, forward.ragged, **how)
        return replace(self, loaded=run_by(self.loaded, compiled)).run("baton", more=" compiled")

    def _step_ms(self, part: str) -> float:
        """A step of as many rows as here; 0 if it was not measured."""
        some = self.results.by_part.get(f"{self.loaded.name}: {part}")
        return {one["rows"]: one["step ms"] for one in some}.get(self.rows, 0.0) if isinstance(some, list) else 0.0
