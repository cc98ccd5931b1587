"""What becomes of queries on an engine that is ended: by measured prices, and for those that cross with the word."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

import pytest
import torch

from baton.cluster.lease import CHECKS, Lease
from baton.cluster.prices import Carried, Line, PriceBook, Prices
from baton.cluster.served import ServedEngine
from baton.cluster.wire import FIRST_TOKEN, Message, News, ask_of, news_of
from baton.core.events import Update
from baton.core.query import Query
from baton.engine.port import Loop
from baton.kv.parcel import Parcel
from baton.kv.segment import KVSegment
from baton.policy.port import Costs
from cluster.test_far import USAGE, Front, never, query, stats

FAST = Prices(Line(0.0, 1e-5), 0.0, Line(0.0, 1e-3), Line(0.0, 1e-3))
SLOW = Prices(Line(0.0, 1e-2), 0.0, Line(0.0, 1e-3), Line(0.0, 1e-3))


@pytest.mark.parametrize(
    ("parcels", "line"),
    [
        ([], None),
        ([(100, 0.5)], (0.0, 0.005)),
        ([(100, 2.0), (200, 3.0), (300, 4.0)], (1.0, 0.01)),
        ([(100, 0.5), (200, 2.0)], (0.0, 0.009)),
        ([(100, 2.0), (200, 1.0)], (0.0, 0.01)),
    ],
)
def test_what_parcels_cost(parcels: Sequence[tuple[int, float]], line: tuple[float, float] | None) -> None:
    carried = Carried()
    for tokens, seconds in parcels:
        carried.add(tokens, seconds)
    found = carried.line()
    assert (found is None) if line is None else found is not None and (found.fixed, found.each) == pytest.approx(line)


def test_keys_and_values_are_moved_until_it_is_known_that_computing_is_faster() -> None:
    book = PriceBook()
    assert book.keys_pay(10)
    book.heard("a", Prices(FAST.fill))
    assert book.keys_pay(10, "a")
    book.heard("b", Prices(None, 0.0, FAST.put, FAST.get))
    assert not book.keys_pay(10, "a") and not book.keys_pay(10, "b")
    # Computing a token takes longer the more there are before it.
    book.heard("a", Prices(FAST.fill, 1e-4))
    assert not book.keys_pay(10, "a") and book.keys_pay(1000, "a")
    book.lost("b")
    assert not book.keys_pay(10, "a")
    # Of few tokens a parcel's fixed part is the larger one.
    book.heard("a", Prices(Line(0.0, 1e-2), 0.0, Line(0.2, 1e-3), SLOW.get))
    assert not book.keys_pay(10, "a") and book.keys_pay(100, "a")


@pytest.mark.parametrize(
    ("handover", "prices", "without_keys"),
    [("auto", None, []), ("auto", SLOW, []), ("auto", FAST, ["p"]), ("keys", FAST, []), ("tokens", SLOW, ["p"])],
)
def test_how_queries_leave(handover: str, prices: Prices | None, without_keys: list[str]) -> None:
    front = Front("a", "b", handover=handover)
    front.loop.submit([query("p")], front.hear)
    front.loop.submit([query("q")], front.hear)
    front.engines.tell("a", News(prices=prices))
    front.loop.leaves("a")
    assert front.engines.verbs == [("give", "a", None)]
    assert front.engines.without_keys == without_keys


def test_without_handing_over_queries_stay_and_the_end_of_their_engine_is_not_their_fault() -> None:
    front = Front("a", "b", "c", "d", handover="off")
    front.loop.submit([query("p")], front.hear)
    for name in "abc":
        front.loop.leaves(name)
        front.engines.lose(name)
    assert front.engines.verbs == [] and front.heard == []
    assert [engine for _, engine in front.engines.where] == ["a", "b", "c", "d"]


def test_queries_stay_on_an_engine_that_leaves_until_another_could_take_them() -> None:
    front = Front("a")
    front.loop.submit([query("p")], front.hear)
    front.loop.leaves("a")
    assert front.engines.verbs == []
    front.engines.say("a", Update("p", (7,), "x"))
    front.engines.there.append("b")
    front.loop.came("b")
    assert front.engines.verbs == [("give", "a", None)]
    front.loop.came("b")
    assert front.engines.verbs == [("give", "a", None)]
    front.engines.say("a", Update("p", (), "", "moved", usage=USAGE))
    assert front.engines.where == [("p", "a"), ("p", "b")]


class Scripted:
    """A loop that does nothing by itself."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.given: list[Any] = []
        self.deliver: Any = None

    def submit(self, queries: Sequence[Query], deliver: Any, *, admitted: bool = False) -> None:
        self.taken += [query.id for query in queries]
        self.deliver = deliver

    def resume(self, segments: Sequence[KVSegment], deliver: Any) -> None:
        self.taken += [segment.query.id for segment in segments]
        self.deliver = deliver

    def give(self, query_ids: Sequence[str] | None = None) -> Future[list[KVSegment]]:
        self.given.append(query_ids)
        segments: Future[list[KVSegment]] = Future()
        names = self.taken if query_ids is None else query_ids
        segments.set_result([KVSegment(query(name), [1, 2, 3, 7], "stamp", 3, 3, [torch.zeros(3)]) for name in names])
        return segments

    def stats(self) -> Any:
        return stats(1, costs=Costs(fill_token_seconds=0.5, fill_fixed_seconds=0.25, fill_experts_seconds=1.0))

    def stuck_seconds(self) -> float:
        return 0.0

    def cancel(self, query_ids: Sequence[str]) -> None: ...


class Served:
    """An engine's side over such a loop, with what it said."""

    def __init__(self) -> None:
        self.loop = Scripted()
        self.said: list[Message] = []
        self.laid_down: list[Parcel] = []
        self.engine = ServedEngine(cast(Loop, self.loop), never, time.monotonic, self.said.append, self)

    def put(self, parcel: Parcel) -> str:
        self.laid_down.append(parcel)
        return f"place {len(self.laid_down)}"

    def get(self, where: Any) -> Parcel:
        raise KeyError(where)

    def news(self) -> list[tuple[str, int, str | None, Any]]:
        """Updates: whose, of which attempt, how they end, and where keys and values are."""
        found = []
        for news in map(news_of, list(self.said)):
            found += [
                (update.query_id, attempt, update.finish_reason, news.laid_down.get(update.query_id))
                for attempt, update in news.updates
            ]
        return found


def test_what_crosses_with_the_word_that_all_leave_moves_on_at_once() -> None:
    served = Served()
    served.engine.start([ask_of(query("p"), [], 1, "stamp", 0.0)])
    served.engine.give(None, ["p"])
    assert served.laid_down == []
    served.engine.start([ask_of(query("q"), [], 1, "stamp", 0.0), ask_of(query("r"), [7], 2, "stamp", 0.0, "there")])
    # Keys and values that nobody has fetched stay where they are.
    assert served.news() == [("q", 1, "moved", None), ("r", 2, "moved", "there")]
    assert served.loop.taken == ["p"] and served.engine.busy
    served.engine.close()


def test_an_engine_tells_what_it_has_measured() -> None:
    served = Served()
    served.engine.start([ask_of(query("p"), [], 1, "stamp", 0.0)])
    served.engine.give(["p"])
    served.engine.start([ask_of(query("q"), [7], 2, "stamp", 0.0, "nowhere")])
    until = time.monotonic() + 30
    prices = None
    while prices is None and time.monotonic() < until:
        told = [news.prices for news in map(news_of, list(served.said)) if news.prices is not None]
        prices = next((one for one in told if one.put is not None), None)
        time.sleep(0.05)
    assert prices is not None and prices.fill == Line(1.25, 0.5)
    assert prices.put is not None and prices.get is None
    served.engine.close()


def test_a_query_may_be_asked_up_to_its_first_token() -> None:
    served = Served()
    asks = [ask_of(query(name), [], 1, "stamp", 0.0, until=FIRST_TOKEN) for name in "pq"]
    served.engine.start([*asks, ask_of(query("r"), [], 1, "stamp", 0.0)])
    served.loop.deliver([Update("p"), Update("q", (7,), "", "stop", usage=USAGE), Update("r", (7,))])
    assert served.loop.given == []
    served.loop.deliver([Update("p", (7,))])
    served.loop.deliver([Update("p", (), "", "moved", usage=USAGE)])
    assert served.loop.given == [["p"]]
    until = time.monotonic() + 30
    while ("p", 1, "moved", "place 1") not in served.news():
        assert time.monotonic() < until
        time.sleep(0.01)
    served.engine.close()


def test_a_lease_is_over_when_it_is_missed_several_times_in_a_row() -> None:
    over = threading.Event()
    there = [*[False] * (CHECKS - 1), True]
    asked: list[str] = []

    def holds(name: str) -> bool:
        asked.append(name)
        return there.pop(0) if there else False

    lease = Lease("front", over.set, holds, pause=0.001)
    assert over.wait(60)
    lease.close()
    assert asked[0] == "front" and len(asked) >= 2 * CHECKS
