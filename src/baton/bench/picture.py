"""A run as a picture: which query was in which row when, and when rows were computed without a query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

_BREATH_SECONDS = 0.002  # at most between two iterations that belong together


@dataclass(frozen=True, slots=True)
class RowInterval:
    """One query in one row of the batch (`kind` "run"), or in a lane of prompts beside it ("prefill"). Seconds."""

    kind: str
    lane: int
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Moment:
    """Iterations of as many rows; `idle`: whether rows without a query, or of a finished one, were computed."""

    began: float
    ended: float
    rows: int
    idle: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """Times are in seconds from the run's start."""

    intervals: tuple[RowInterval, ...]
    moments: tuple[Moment, ...]


def merged(moments: Iterable[Moment], start: float) -> tuple[Moment, ...]:
    """The moments from `start` on, with times from there; equal ones that follow closely are joined."""
    result: list[Moment] = []
    for one in moments:
        if one.began < start:
            continue
        now = replace(one, began=one.began - start, ended=one.ended - start)
        last = result[-1] if result else None
        alike = last and (last.rows, last.idle) == (now.rows, now.idle) and now.began - last.ended < _BREATH_SECONDS
        if last and alike:
            result[-1] = replace(last, ended=now.ended)
        else:
            result.append(now)
    return tuple(result)
