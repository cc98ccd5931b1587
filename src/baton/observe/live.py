"""What the live page and `baton top` draw: the timeline's news, figures of the last seconds, and the bottleneck."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import psutil

from baton.core.clock import Clock
from baton.engine.client import Stats
from baton.observe.bottleneck import Machine, diagnose
from baton.observe.timeline import WINDOW_SECONDS, Bucket, RowInterval, Timeline, percentile

FIGURES_SECONDS = 60.0
RATE_SECONDS = 5.0
DIAGNOSIS_SECONDS = 10.0
_RESTED_SECONDS = 1.0
_CPU_SECONDS = 0.5

STAY_FIELDS = ("query", "kind", "lane", "began", "ended", "how", "prompt", "tokens", "generated", "filled")
"""An interval is told as a list of these (`timeline.RowInterval`), hundreds of them. `filled` is told of rows alone."""
_WHOLE = ("prefilled", "generated", "preempted", "rejected", "rows", "occupied", "held", "waiting")


class Live:
    """One engine's live view. `settings`: what the page shows of them."""

    def __init__(
        self,
        timeline: Timeline,
        clock: Clock,
        *,
        model_name: str,
        machine: Machine,
        max_rows: int,
        settings: Mapping[str, Any],
    ) -> None:
        self._timeline = timeline
        self._clock = clock
        self._machine = machine
        self._max_rows = max_rows
        self._about = {"model": model_name, "max_rows": max_rows, "settings": dict(settings)}
        # Whoever reads goes on where it was only if it talks to the same engine.
        self._about["run"] = secrets.token_hex(6)
        self._cpu = _Cpu(clock)

    def data(self, stats: Stats, serial: int, time: float) -> bytes:
        """As JSON: what is new since `serial` and `time`, and how it is now. From 0 and 0, everything that is kept.

        May be called from any thread.
        """
        now = self._clock()
        news = self._timeline.since(serial, time)
        recent = self._timeline.last(DIAGNOSIS_SECONDS, now)
        if recent and recent[-1].at < now - _RESTED_SECONDS:
            recent = []
        found = {
            **self._about,
            "now": round(now, 3),
            "serial": news.serial,
            "window_seconds": WINDOW_SECONDS,
            "complete_from": round(news.complete_from, 3),
            "stay_fields": STAY_FIELDS,
            "stays": [_told(stay) for stay in news.stays],
            "buckets": columns(news.buckets),
            "figures": figures(self._timeline.last(FIGURES_SECONDS, now), now),
            "engine": stats.numbers(),
            "diagnosis": asdict(diagnose(recent, stats.costs, self._machine, max_rows=self._max_rows)),
            "process": self._cpu.told(),
        }
        return json.dumps(found, separators=(",", ":")).encode()


class _Cpu:
    """What this process takes: cores over the last half second or more, however many ask."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._process = psutil.Process()
        self._lock = threading.Lock()
        self._at, self._seconds, self._cores = clock(), self._spent(), 0.0

    def told(self) -> dict[str, Any]:
        with self._lock:
            now = self._clock()
            if now - self._at >= _CPU_SECONDS:
                spent = self._spent()
                self._cores = (spent - self._seconds) / (now - self._at)
                self._at, self._seconds = now, spent
            memory = self._process.memory_info().rss
            return {"cpu_cores": round(self._cores, 2), "cores": _usable(), "rss_bytes": memory}

    def _spent(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def _usable() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1


def _told(stay: RowInterval) -> list[Any]:
    ended = None if stay.ended is None else round(stay.ended, 3)
    filled = None if stay.filled is None or stay.kind != "run" else round(stay.filled, 3)
    counts = (stay.prompt, stay.tokens, stay.generated)
    return [stay.query, stay.kind, stay.lane, round(stay.began, 3), ended, stay.how, *counts, filled]


def columns(buckets: Sequence[Bucket]) -> dict[str, list[Any]]:
    """The same as lists, one for each fact, which is a third of the bytes. Seconds; memory in KiB.

    Of times to first tokens and between tokens the middle one and the 95th of a hundred, None where there were none.
    """
    found: dict[str, list[Any]] = {"at": [bucket.at for bucket in buckets]}
    found |= {name: [getattr(bucket, name) for bucket in buckets] for name in _WHOLE}
    found |= {kind: [bucket.slots[kind] for bucket in buckets] for kind in Bucket(0.0).slots}
    for name, field in (("busy", "busy_seconds"), ("stall", "stall_seconds")):
        found[name] = [round(getattr(bucket, field), 3) for bucket in buckets]
    for name, field in (("kv_kib", "kv_bytes"), ("kv_budget_kib", "kv_budget")):
        found[name] = [getattr(bucket, field) // 1024 for bucket in buckets]
    for name, field in (("first", "first_tokens"), ("gap", "gaps")):
        for share in (50, 95):
            values = [percentile(getattr(bucket, field), share / 100) for bucket in buckets]
            found[f"{name}_p{share}"] = [None if value is None else round(value, 4) for value in values]
    return found


def figures(buckets: Sequence[Bucket], now: float) -> dict[str, Any]:
    """Of these buckets, in seconds: percentiles and shares of all of them, rates of the last seconds."""
    recent = [bucket for bucket in buckets if bucket.at > now - RATE_SECONDS]
    # From the first of them on where there were none before: an engine that has just begun is not slow.
    span = max(1.0, min(RATE_SECONDS, now - buckets[0].at)) if buckets else 1.0
    slots = {kind: sum(bucket.slots[kind] for bucket in buckets) for kind in (buckets[0].slots if buckets else ())}
    total = sum(slots.values())
    first = [seconds for bucket in buckets for seconds in bucket.first_tokens]
    gaps = [seconds for bucket in buckets for seconds in bucket.gaps]
    return {
        "tokens_per_second": round(sum(bucket.generated for bucket in recent) / span, 1),
        "prompt_tokens_per_second": round(sum(bucket.prefilled for bucket in recent) / span, 1),
        "idle_ratio": 1 - slots["useful"] / total if total else 0.0,
        "slots": slots,
        "first_token": {f"p{q}": percentile(first, q / 100) for q in (50, 95)},
        "inter_token": {f"p{q}": percentile(gaps, q / 100) for q in (50, 95)},
        "busy": min(1.0, round(sum(bucket.busy_seconds for bucket in recent) / span, 3)),
    }
