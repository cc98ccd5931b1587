"""A run as a picture: who was in which row when, and when rows were computed that nobody was in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

_BREATH_SECONDS = 0.002  # between two iterations that belong together


@dataclass(frozen=True, slots=True)
class RowInterval:
    """One query in one row of the batch (`kind` "run"), or in a lane of prompts beside it ("prefill"). Seconds."""

    kind: str
    lane: int
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Moment:
    """Iterations of as many rows; `idle`: whether rows were computed that no query was in, or a finished one."""

    began: float
    ended: float
    rows: int
    idle: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """Seconds count from the run's start."""

    intervals: tuple[RowInterval, ...]
    moments: tuple[Moment, ...]


def merged(moments: Iterable[Moment], start: float) -> tuple[Moment, ...]:
    """Those from `start` on, counted from there; alike ones that follow each other closely as one."""
    found: list[Moment] = []
    for one in moments:
        if one.began < start:
            continue
        now = replace(one, began=one.began - start, ended=one.ended - start)
        last = found[-1] if found else None
        alike = last and (last.rows, last.idle) == (now.rows, now.idle) and now.began - last.ended < _BREATH_SECONDS
        if last and alike:
            found[-1] = replace(last, ended=now.ended)
        else:
            found.append(now)
    return tuple(found)
