"""What crosses between a front and its engines, as plain JSON: asks one way, updates and statistics the other."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.cluster.prices import Prices, prices_heard, prices_told
from baton.core.errors import BatonError
from baton.core.events import Slots, Update
from baton.core.limits import Limits
from baton.core.query import Query
from baton.core.settings import Settings
from baton.core.told import heard, told
from baton.engine.port import Stats
from baton.kv.parcel import BadParcel, Compile, Parcel, pack, resumed, unpack
from baton.kv.segment import KVSegment

log = logging.getLogger("baton.cluster")

WIRE = 2
"""The version of all that crosses. Another one is refused by its number."""
FIRST_TOKEN = "token"
"""In an ask: the query leaves the engine when its first token is drawn."""
Message = Mapping[str, Any]


class BadMessage(BatonError):
    """A message is of another version, or is none."""


@dataclass(frozen=True, slots=True)
class About:
    """What a front needs to know of its engines.

    `end_ids`: tokens that end a text. `stamp`: of keys and values that engines take from one another. `defaults`: of
    sampling. `weights`: names model, weights and number format; where it is the same, the same tokens are drawn.
    """

    model: str
    settings: Settings
    honours: tuple[str, ...]
    end_ids: tuple[int, ...]
    stamp: str
    defaults: Mapping[str, float]
    weights: str = ""

    def check_same(self, other: About) -> None:
        """Raises BadMessage if a query of one engine must not go on in the other. From tokens alone it always can."""
        if (self.model, self.weights) != (other.model, other.weights):
            raise BadMessage("it has another model, or other weights")


@dataclass(frozen=True, slots=True)
class News:
    """What one iteration of an engine has to tell.

    `updates`: each with the attempt of its query that it belongs to. `stuck_seconds`: for so long the engine has had
    work and not come round. `laid_down`: where keys and values are of queries that moved, by their ids. `prices`: what
    the engine has measured.
    """

    updates: Sequence[tuple[int, Update]] = ()
    stats: Stats | None = None
    stuck_seconds: float = 0.0
    laid_down: Mapping[str, Any] = field(default_factory=dict)
    prices: Prices | None = None


def ask_of(
    query: Query,
    tokens_told: Sequence[int],
    attempt: int,
    stamp: str,
    now: float,
    laid_down: Any = None,
    *,
    until: str = "",
) -> Message:
    """A query as a message, with the tokens that its asker was told. `now`: on the clock of this process.

    `laid_down`: where its keys and values are, if an engine has laid them down. `until`: `FIRST_TOKEN`, or "" for all.
    """
    parcel = dict(pack(resumed(query, tokens_told, stamp), now).header)
    return {"wire": WIRE, "attempt": attempt, "parcel": parcel, "laid_down": laid_down, "until": until}


def name_of(ask: Message) -> str:
    """The query's id; "" if this is no ask."""
    try:
        return str(ask["parcel"]["query"]["id"])
    except (KeyError, TypeError):
        return ""


def segment_of(
    ask: Message, now: float, compile: Compile, fetch: Callable[[Any], Parcel] | None = None
) -> tuple[int, KVSegment]:
    """The attempt and the segment of an ask. Raises BadMessage, BadParcel, and what `compile` does.

    `fetch` brings keys and values that were laid down. Without them, all is computed again.
    """
    _check(ask)
    try:
        attempt, asked, where = int(ask["attempt"]), Parcel(ask["parcel"]), ask.get("laid_down")
        if where is not None and fetch is not None:
            with contextlib.suppress(BadParcel):
                return attempt, unpack(_with_keys(asked, where, fetch), now, compile)
        return attempt, unpack(asked, now, compile)
    except (KeyError, TypeError, ValueError) as error:
        raise BadMessage(f"this is no ask: {type(error).__name__}") from error


def _with_keys(asked: Parcel, where: Any, fetch: Callable[[Any], Parcel]) -> Parcel:
    """What was asked, with the keys and values of the same tokens. They only save work, so any trouble leaves them."""
    try:
        found = fetch(where)
        same = ("version", "tokens", "stamp")
        if [found.header[name] for name in same] == [asked.header[name] for name in same]:
            return Parcel({**asked.header, **{name: found.header[name] for name in _KEPT}}, found.parts)
    except Exception:
        log.warning("keys and values that were laid down could not be fetched, and are computed again", exc_info=True)
    return asked


_KEPT = ("cached", "computed", "parts")


def message_of(news: News) -> Message:
    return {
        "wire": WIRE,
        "updates": [[attempt, *told(update)] for attempt, update in news.updates],
        "stats": None if news.stats is None else _stats(news.stats),
        "stuck": news.stuck_seconds,
        "laid_down": dict(news.laid_down),
        "prices": None if news.prices is None else prices_told(news.prices),
    }


def news_of(message: Message) -> News:
    """Raises BadMessage."""
    _check(message)
    try:
        updates = [(int(attempt), heard(update)) for attempt, *update in message["updates"]]
        stats = message["stats"]
        if stats is not None:
            stats = Stats(**{**stats, "slots": Slots(**stats["slots"])})
        prices = None if message["prices"] is None else prices_heard(message["prices"])
        return News(updates, stats, float(message["stuck"]), dict(message["laid_down"]), prices)
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


def _stats(stats: Stats) -> Message:
    return {**stats.numbers(), "slots": dataclasses.asdict(stats.slots), "outcomes": dict(stats.outcomes)}


def _check(message: Message) -> None:
    version = message.get("wire")
    if version != WIRE:
        raise BadMessage(f"a message of version {version!r}; this is version {WIRE}")
