"""What crosses between a front and its engines, as plain JSON: asks one way, updates and statistics the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baton.core.errors import BatonError
from baton.core.events import Slots, Update
from baton.core.limits import Limits
from baton.core.query import Query
from baton.core.settings import Settings
from baton.core.told import heard, told
from baton.engine.port import Stats
from baton.kv.parcel import Compile, Parcel, pack, resumed, unpack
from baton.kv.segment import KVSegment

WIRE = 1
"""The version of all that crosses. Another one is refused by its number."""
Message = Mapping[str, Any]


class BadMessage(BatonError):
    """A message is of another version, or is none."""


@dataclass(frozen=True, slots=True)
class About:
    """What a front needs to know of its engines. `end_ids`: tokens that end a text. `defaults`: of sampling."""

    model: str
    settings: Settings
    honours: tuple[str, ...]
    end_ids: tuple[int, ...]
    stamp: str
    defaults: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class News:
    """What one iteration of an engine has to tell. `updates`: each with the attempt of its query that it belongs to."""

    updates: Sequence[tuple[int, Update]]
    stats: Stats | None = None


def ask_of(query: Query, tokens_told: Sequence[int], attempt: int, stamp: str, now: float) -> Message:
    """A query as a message, with the tokens that its asker was told. `now`: on the clock of this process."""
    parcel = pack(resumed(query, tokens_told, stamp), now)
    return {"wire": WIRE, "attempt": attempt, "parcel": dict(parcel.header)}


def segment_of(ask: Message, now: float, compile: Compile) -> tuple[int, KVSegment]:
    """The attempt and the segment of an ask. Raises BadMessage, BadParcel, and what `compile` does."""
    _check(ask)
    try:
        return int(ask["attempt"]), unpack(Parcel(ask["parcel"]), now, compile)
    except (KeyError, TypeError, ValueError) as error:
        raise BadMessage(f"this is no ask: {type(error).__name__}") from error


def message_of(news: News) -> Message:
    updates = [[attempt, *told(update)] for attempt, update in news.updates]
    return {"wire": WIRE, "updates": updates, "stats": None if news.stats is None else _stats(news.stats)}


def news_of(message: Message) -> News:
    """Raises BadMessage."""
    _check(message)
    try:
        updates = [(int(attempt), heard(update)) for attempt, *update in message["updates"]]
        stats = message["stats"]
        if stats is None:
            return News(updates)
        return News(updates, Stats(**{**stats, "slots": Slots(**stats["slots"])}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadMessage(f"this is no news: {type(error).__name__}") from error


def introduction(about: About) -> Message:
    return {"wire": WIRE, "about": dataclasses.asdict(about)}


def about_of(message: Message) -> About:
    """Raises BadMessage."""
    _check(message)
    try:
        known = dict(message["about"])
        settings = dict(known.pop("settings"))
        limits = Limits(**settings.pop("limits"))
        known |= {name: tuple(known[name]) for name in ("honours", "end_ids")}
        return About(settings=Settings(**settings, limits=limits), **known)
    except (KeyError, TypeError, ValueError) as error:
        raise BadMessage(f"this is no introduction: {type(error).__name__}") from error


def summed(all_stats: Sequence[Stats]) -> Stats:
    """The statistics of several engines as those of one. The age is that of the engine that is silent longest."""
    first, *others = all_stats
    numbers = dict(first.numbers())
    slots, outcomes = Slots(), dict(first.outcomes)
    slots.add(first.slots)
    for other in others:
        for name, value in other.numbers().items():
            numbers[name] = max(numbers[name], value) if name in _NOT_SUMMED else numbers[name] + value
        slots.add(other.slots)
        for name, value in other.outcomes.items():
            outcomes[name] = outcomes.get(name, 0) + value
    return Stats(**numbers, slots=slots, outcomes=outcomes)  # type: ignore[arg-type]


_NOT_SUMMED = ("last_iteration_age_seconds", "columns")


def _stats(stats: Stats) -> Message:
    return {**stats.numbers(), "slots": dataclasses.asdict(stats.slots), "outcomes": dict(stats.outcomes)}


def _check(message: Message) -> None:
    version = message.get("wire")
    if version != WIRE:
        raise BadMessage(f"a message of version {version!r}; this is version {WIRE}")
