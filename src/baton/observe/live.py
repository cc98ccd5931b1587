"""What the live page and `baton top` draw: new timeline entries, recent figures, and the bottleneck."""

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

INTERVAL_FIELDS = ("query", "kind", "lane", "began", "ended", "how", "prompt", "tokens", "generated", "filled")
"""The fields of the list that stands for an interval (`timeline.RowInterval`), of which there are hundreds.

Only intervals of rows have `filled`.
"""
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
        # A reader may go on from its serial only if it still reads the same engine.
        self._about["run"] = secrets.token_hex(6)
        self._cpu = _Cpu(clock)

    def data(self, stats: Stats, serial: int, time: float) -> bytes:
        """Returns as JSON what is new since `serial` and `time`, and the state now.

        From 0 and 0: everything that is kept. May be called from any thread.
        """
        now = self._clock()
        news = self._timeline.since(serial, time)
        recent = self._timeline.last(DIAGNOSIS_SECONDS, now)
        if recent and recent[-1].at < now - _RESTED_SECONDS:
            recent = []
        body = {
            **self._about,
            "now": round(now, 3),
            "serial": news.serial,
            "window_seconds": WINDOW_SECONDS,
            "complete_from": round(news.complete_from, 3),
            "stay_fields": INTERVAL_FIELDS,
            "stays": [_row_of(interval) for interval in news.intervals],
            "buckets": columns(news.buckets),
            "figures": figures(self._timeline.last(FIGURES_SECONDS, now), now),
            "engine": stats.numbers(),
            "diagnosis": asdict(diagnose(recent, stats.costs, self._machine, max_rows=self._max_rows)),
            "process": self._cpu.usage(),
        }
        return json.dumps(body, separators=(",", ":")).encode()


class _Cpu:
    """How many cores this process uses, over the last half second or more; any number of readers may ask."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._process = psutil.Process()
        self._lock = threading.Lock()
        self._at, self._seconds, self._cores = clock(), self._spent(), 0.0

    def usage(self) -> dict[str, Any]:
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


def _row_of(interval: RowInterval) -> list[Any]:
    ended = None if interval.ended is None else round(interval.ended, 3)
    filled = None if interval.filled is None or interval.kind != "run" else round(interval.filled, 3)
    counts = (interval.prompt, interval.tokens, interval.generated)
    return [
        interval.query,
        interval.kind,
        interval.lane,
        round(interval.began, 3),
        ended,
        interval.how,
        *counts,
        filled,
    ]


def columns(buckets: Sequence[Bucket]) -> dict[str, list[Any]]:
    """Returns the buckets as one list for each fact, which is a third of the bytes. Seconds; memory in KiB.

    Times to first tokens and between tokens are given as their median and 95th percentile, None if there were none.
    """
    lists: dict[str, list[Any]] = {"at": [bucket.at for bucket in buckets]}
    lists |= {name: [getattr(bucket, name) for bucket in buckets] for name in _WHOLE}
    lists |= {kind: [bucket.slots[kind] for bucket in buckets] for kind in Bucket(0.0).slots}
    for name, field in (("busy", "busy_seconds"), ("stall", "stall_seconds")):
        lists[name] = [round(getattr(bucket, field), 3) for bucket in buckets]
    for name, field in (("kv_kib", "kv_bytes"), ("kv_budget_kib", "kv_budget")):
        lists[name] = [getattr(bucket, field) // 1024 for bucket in buckets]
    for name, field in (("first", "first_tokens"), ("gap", "gaps")):
        for share in (50, 95):
            values = [percentile(getattr(bucket, field), share / 100) for bucket in buckets]
            lists[f"{name}_p{share}"] = [None if value is None else round(value, 4) for value in values]
    return lists


def figures(buckets: Sequence[Bucket], now: float) -> dict[str, Any]:
    """Figures of these buckets, in seconds: percentiles and shares of all of them, rates of the last seconds."""
    recent = [bucket for bucket in buckets if bucket.at > now - RATE_SECONDS]
    # Counts only from the first event on: an engine that has just begun is not slow.
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
