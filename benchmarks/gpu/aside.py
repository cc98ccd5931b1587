"""Rows that leave the rectangle: swapped out to the host and back, beside running steps, and stored prefixes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from baton.compose import make_engine
from baton.core.query import Query, SamplingParams
from baton.core.settings import Settings
from baton.cuda.copy_stream import CopyStream, CudaCopyStream
from baton.cuda.decode_steps import Steps
from baton.cuda.offload import HostOffload
from baton.cuda.packed_rows import Packed
from baton.cuda.pinned_memory import SLAB_BYTES, HostMemory, pin
from baton.cuda.slots import Slot, follows
from baton.engine.engine import Engine
from baton.kv.rectangle import Rectangle, footprint
from baton.loader.loaded import Loaded
from baton.policy.table import POLICIES
from baton.testing.late_lane import LateLane

from .asks import prompt_of
from .engine import Response
from .models import cuda_forward, free
from .results import Results

ROWS = 16


def aside(results: Results, loaded: Loaded, tiny: bool) -> None:
    """Some 30 seconds in all."""
    name = f"{loaded.name}: aside"
    lengths, columns = ((40, 64), 96) if tiny else ((1000, 4000), 4352)
    results.part(f"{name}, copies", lambda: copies(loaded, lengths), needs=10)
    results.part(f"{name}, steps", lambda: beside(loaded, lengths[-1], 4 if tiny else 60), needs=15)
    results.part(f"{name}, preemption", lambda: preemption(loaded, columns, 10.0), needs=30)
    results.part(f"{name}, prefixes", lambda: prefix_hit(loaded, columns, lengths), needs=15)


def copies(loaded: Loaded, tokens: Sequence[int]) -> list[dict[str, Any]]:
    """A row of so many tokens to the host and back: what it takes of the engine's thread, and until it is there."""
    rectangle = _rectangle(loaded, 2, max(tokens))
    measurements = []
    for count in tokens:
        rectangle.lens[:] = [count, count]
        row_bytes = sum(part.nbytes for part in rectangle.view(0))
        for pinned in (True, False):
            began = time.perf_counter()
            host = _host(loaded, pinned, 2 * row_bytes)
            seconds = time.perf_counter() - began
            moving = HostOffload(_lane(loaded), host, row_bytes)
            out, into = _there_and_back(moving, rectangle, loaded.device)
            measurements.append(
                {
                    "tokens": count,
                    "MB": row_bytes / 1e6,
                    "memory": "pinned" if host.pinned_bytes else "pageable",
                    "pinned in ms": seconds * 1e3,
                    "out: host ms": out[0] * 1e3,
                    "out ms": out[1] * 1e3,
                    "out GB/s": row_bytes / out[1] / 1e9,
                    "in: host ms": into[0] * 1e3,
                    "in ms": into[1] * 1e3,
                    "in GB/s": row_bytes / into[1] / 1e9,
                }
            )
    return measurements


def beside(loaded: Loaded, tokens: int, count: int) -> list[dict[str, Any]]:
    """Steps of a running batch alone, and while rows are copied to the host and back without a pause."""
    rectangle = _rectangle(loaded, ROWS + 2, tokens)
    rectangle.lens[:] = [tokens] * (ROWS + 2)
    forward = cuda_forward(loaded)
    assert forward.ragged is not None
    run = Steps(forward.torch_forward.hooked, rectangle, forward.ragged, capture=loaded.device.type == "cuda")
    run.launch([Slot(row, 5 + row, tokens // 2) for row in range(ROWS)]).tokens()
    row_bytes = sum(part.nbytes for part in rectangle.view(0))
    measurements = []
    for kind in ("alone", "beside copies", "beside pageable copies", "beside pinning"):
        host = _host(loaded, kind != "beside pageable copies", 4 * row_bytes)
        moving = HostOffload(_lane(loaded), host, 2 * row_bytes)
        turn = _pinning(loaded) if kind == "beside pinning" else _ferry(moving, rectangle) if kind != "alone" else None
        times, moved = [], 0
        last = None
        for at in range(count):
            began = time.perf_counter()
            following = run.launch([Slot(row, follows(row), tokens // 2 + at + 1) for row in range(ROWS)])
            moved += next(turn) if turn is not None else 0
            if last is not None:
                last.tokens()
            times.append(time.perf_counter() - began)
            last = following
        measurements.append(
            {
                "steps": kind,
                "rows": ROWS,
                "step ms p50": statistics.median(times) * 1e3,
                "step ms most": max(times[1:]) * 1e3,
                "moved MB a step": moved * row_bytes / count / 1e6,
            }
        )
    return measurements


def preemption(loaded: Loaded, columns: int, cap: float) -> list[dict[str, Any]]:
    """Rows full of patient queries when urgent ones come: swapped out, and forgotten if nothing may be kept."""
    prompt, answer = columns // 2, columns // 8
    patient = [_query(f"p{at}", prompt_of(prompt, at), answer, priority=5) for at in range(ROWS)]
    urgent = [_query(f"u{at}", prompt_of(prompt // 8, at), answer // 4) for at in range(ROWS)]
    measurements = []
    for pool in (2**33, 0):
        heard = Response()
        engine = make_engine(loaded, _settings(loaded, "priority", columns, pool), POLICIES["priority"]())
        asked, turn = time.perf_counter(), 0
        for query in patient:
            engine.accept(query, heard)
        late, sent = list(urgent), dict[str, float]()
        while (engine.busy or late) and time.perf_counter() - asked < cap:
            # One urgent query every few iterations, once the patient ones have begun to generate.
            if late and len(heard.told) >= ROWS and turn % 4 == 0:
                sent[late[-1].id] = time.perf_counter()
                engine.accept(late.pop(), heard)
            turn += 1
            engine.iterate()
            engine.flush()
        seconds = time.perf_counter() - asked
        firsts = [heard.told[name][0] - began for name, began in sent.items() if name in heard.told]
        waits = {"urgent first token ms p50": statistics.median(firsts) * 1e3} if firsts else {}
        measurements.append(
            {
                "swapped out": "kept on the host" if pool else "forgotten",
                "tokens/s": heard.tokens / seconds,
                "seconds": seconds,
                "tokens": heard.tokens,
                "whole": not engine.busy and not late,
                "lost rows": engine.lifecycle.preemptions,
                **waits,
            }
        )
        del engine
        free(loaded)
    return measurements


def prefix_hit(loaded: Loaded, columns: int, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """The first token of a prompt that is new, and of one that continues a stored one."""
    engine = make_engine(loaded, _settings(loaded, "baton", columns, 2**33), POLICIES["baton"]())
    measurements = []
    for at, length in enumerate(lengths):
        times: dict[str, list[float]] = {"computed": [], "stored": []}
        for again in range(3):
            # Of another beginning than all before.
            text = prompt_of(length, 1 + 3 * at + again)
            _first(engine, _query(f"c{length}.{again}", text, 1), times["computed"])
            _first(engine, _query(f"s{length}.{again}", [*text, 7, 8, 9], 1), times["stored"])
        ms = {name: statistics.median(some) * 1e3 for name, some in times.items()}
        kept = engine.queries.prefixes.bytes_used
        measurements.append(
            {"tokens": length, "computed ms": ms["computed"], "stored ms": ms["stored"], "MB": kept / 1e6}
        )
    del engine
    free(loaded)
    return measurements


def _rectangle(loaded: Loaded, capacity: int, columns: int) -> Rectangle:
    made = Rectangle(
        loaded.geometry.shapes, capacity=capacity, columns=columns, dtype=loaded.dtype, device=loaded.device
    )
    for buffer in (*made.keys, *made.values):
        buffer.normal_()
    return made


def _lane(loaded: Loaded) -> CopyStream:
    return CudaCopyStream(loaded.device) if loaded.device.type == "cuda" else LateLane(0)


def _host(loaded: Loaded, pinned: bool, size: int) -> HostMemory:
    """Enough for so many bytes, in one slab."""
    if not pinned or loaded.device.type == "cuda":
        return HostMemory(2 * size if pinned else 0, longest=size)
    return HostMemory(2 * size, longest=size, pin=lambda count: torch.empty(count, dtype=torch.uint8))


def _there_and_back(
    moving: HostOffload, rectangle: Rectangle, device: torch.device
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Medians of seconds: until the host goes on, and until it is there; out, and in."""
    outs, ins = [], []
    for _ in range(5):
        _wait(device)
        began = time.perf_counter()
        leaving = moving.out(rectangle.view(0))
        host = time.perf_counter() - began
        leaving.event.wait()
        outs.append((host, time.perf_counter() - began))
        packed = Packed(leaving.pieces)
        began = time.perf_counter()
        arrival = moving.into(packed, rectangle.view(1))
        arrival.land()
        host = time.perf_counter() - began
        _wait(device)
        ins.append((host, time.perf_counter() - began))
        moving.release(packed)
    return _medians(outs), _medians(ins)


def _medians(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _ferry(moving: HostOffload, rectangle: Rectangle) -> Iterator[int]:
    """Between two steps: begins the next copy when the last is done; how many rows' bytes were moved."""
    while True:
        leaving = moving.out(rectangle.view(ROWS))
        yield 1
        while not leaving.event.done():
            yield 0
        packed = Packed(leaving.pieces)
        arrival = moving.into(packed, rectangle.view(ROWS + 1))
        moving.release(packed)
        yield 1
        while not arrival.done():
            yield 0
        arrival.land()


def _pinning(loaded: Loaded) -> Iterator[int]:
    """Some slabs, one after the other, on a thread of its own as `HostMemory` takes them."""
    size = SLAB_BYTES if loaded.device.type == "cuda" else 2**16
    take = pin if loaded.device.type == "cuda" else partial(torch.empty, dtype=torch.uint8)
    with ThreadPoolExecutor(1) as thread:
        # Kept, or the next would be given the same.
        taken = [thread.submit(take, size) for _ in range(4)]
        while taken:
            yield 0


def _settings(loaded: Loaded, policy: str, columns: int, pool: int) -> Settings:
    row_bytes = footprint(loaded.geometry.shapes, columns, loaded.dtype, loaded.device).of(columns)
    return Settings(
        policy=policy,
        max_rows=ROWS,
        max_model_len=columns,
        kv_bytes=(2 * ROWS + 1) * row_bytes,
        prefill_chunk=None,
        max_stall_seconds=0.2,
        max_waiting=4 * ROWS,
        seed=0,
        swap_bytes=pool,
        prefix_cache=True,
    )


def _query(name: str, prompt: Sequence[int], tokens: int, priority: int = 0) -> Query:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return Query(
        id=name, prompt=tuple(prompt), params=params, seed=0, limit_tokens=tokens, arrived=0.0, priority=priority
    )


def _first(engine: Engine, query: Query, times: list[float]) -> None:
    began = time.perf_counter()
    heard = Response()
    engine.accept(query, heard)
    while engine.busy:
        engine.iterate()
        engine.flush()
    times.append(time.perf_counter() - began)
