"""The front's loop over engines that do what a test says: who is asked, what is told, and when a query is given up."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from baton.cluster.far import FarLoop
from baton.cluster.port import EngineLost, Hearing
from baton.cluster.prices import Line, Prices
from baton.cluster.wire import (
    WIRE,
    About,
    BadMessage,
    Message,
    News,
    about_of,
    ask_of,
    introduction,
    message_of,
    news_of,
    segment_of,
)
from baton.core.errors import EngineUnhealthy, QueryFailed, QueueFull, ShuttingDown
from baton.core.events import Slots, TokenLogprobs, Update, Usage
from baton.core.query import Query, SamplingParams
from baton.core.settings import Settings
from baton.engine.port import Stats
from baton.kv.parcel import Parcel, pack
from baton.kv.segment import KVSegment
from baton.server.errors import failure

SETTINGS = Settings("baton", 1, 64, 4096, None, 0.2, 2, 0)
ABOUT = About("m", SETTINGS, ("priority",), (0,), "stamp", {"top_p": 0.5})
USAGE = Usage(3, 2, 10, 1, 0.5, 0.5, 0.5, 0.25, 1, 2)


def query(name: str, **more: Any) -> Query:
    asked = {"prompt": (1, 2, 3), "params": SamplingParams(), "seed": 1, "limit_tokens": 9, "arrived": 0.0}
    return Query(id=name, **{**asked, **more})


def never(form: object) -> Any:
    raise AssertionError


class Told:
    """The engines, by what they were told. `broken`: start on these raises."""

    def __init__(self, *names: str) -> None:
        self.there = list(names)
        self.asked: list[tuple[str, Any]] = []
        self.verbs: list[tuple[str, str, Any]] = []
        self.broken: set[str] = set()
        self.without_keys: list[str] = []
        self.hearing: Hearing

    def names(self) -> Sequence[str]:
        return self.there

    def prefill_names(self) -> Sequence[str]:
        return [name for name in self.there if name.startswith("fill")]

    def listen(self, hearing: Hearing) -> None:
        self.hearing = hearing

    def start(self, engine: str, asks: Sequence[Message]) -> None:
        if engine in self.broken:
            raise EngineLost("gone")
        self.asked += [(engine, json.loads(json.dumps(ask))) for ask in asks]

    def cancel(self, engine: str, query_ids: Sequence[str]) -> None:
        self.verbs.append(("cancel", engine, list(query_ids)))

    def give(self, engine: str, query_ids: Sequence[str] | None = None, without_keys: Sequence[str] = ()) -> None:
        self.verbs.append(("give", engine, query_ids))
        self.without_keys = list(without_keys)

    def abandon(self, engine: str) -> None:
        self.verbs.append(("abandon", engine, None))
        self.there.remove(engine)

    def close(self) -> None: ...

    def say(self, engine: str, update: Update, attempt: int = 1, stats: Stats | None = None, **news: Any) -> None:
        self.tell(engine, News([(attempt, update)], stats, **news))

    def tell(self, engine: str, news: News) -> None:
        self.hearing.heard(engine, json.loads(json.dumps(message_of(news))))

    def lose(self, engine: str) -> None:
        self.there.remove(engine)
        self.hearing.lost(engine)

    @property
    def where(self) -> list[tuple[str, str]]:
        return [(ask["parcel"]["query"]["id"], engine) for engine, ask in self.asked]


class Front:
    """A loop over these engines, and what its askers heard."""

    def __init__(self, *names: str, **more: Any) -> None:
        self.engines = Told(*names)
        self.now = 100.0
        self.loop = FarLoop(self.engines, ABOUT, lambda: self.now, **more)
        self.heard: list[Update] = []
        self.hear: Callable[[list[Update]], None] = self.heard.extend


def test_work_is_spread_and_updates_come_back() -> None:
    front = Front("a", "b")
    for name in "pqrs":
        front.loop.submit([query(name)], front.hear)
    assert front.engines.where == [("p", "a"), ("q", "b"), ("r", "a"), ("s", "b")]
    front.engines.say("a", Update("p", (7,), "x"))
    front.engines.say("a", Update("p", (8,), "y", "stop", usage=USAGE, stopped_by="y"))
    assert front.heard == [Update("p", (7,), "x"), Update("p", (8,), "y", "stop", usage=USAGE, stopped_by="y")]
    front.engines.say("a", Update("p", (9,), "late"))
    assert len(front.heard) == 2


def test_after_a_loss_a_query_goes_on_from_what_was_told() -> None:
    front = Front("a", "b")
    front.loop.submit([query("p")], front.hear)
    front.engines.say("a", Update("p", (7,), "x"))
    front.engines.lose("a")
    (_, ask) = front.engines.asked[-1]
    attempt, segment = segment_of(ask, 0.0, never)
    assert (attempt, segment.tokens, segment.cached, segment.computed) == (2, [1, 2, 3, 7], 0, 3)
    # What the first engine still said is nobody's; a "cancelled" of an earlier attempt is no end.
    front.engines.say("a", Update("p", (6,), "no"), 1)
    front.engines.say("b", Update("p", finish_reason="cancelled"), 1)
    front.engines.say("b", Update("p", (8,), "y", "length", usage=USAGE), 2)
    assert front.heard == [Update("p", (7,), "x"), Update("p", (8,), "y", "length", usage=USAGE)]


def test_two_losses_are_enough() -> None:
    front = Front("a", "b", "c")
    front.loop.submit([query("p")], front.hear)
    for name in "ab":
        front.loop.took(name, ["p", "nobody"])
        front.engines.lose(name)
    assert [engine for engine, _ in front.engines.asked] == ["a", "b"]
    assert (front.heard[-1].finish_reason, front.heard[-1].code) == ("error", "engine_lost")
    failed = failure(front.heard[-1])
    assert isinstance(failed, QueryFailed) and (failed.status, failed.code) == (500, "engine_lost")
    assert front.loop.drain(0.0)


def test_engines_that_end_together_are_no_sign() -> None:
    """It was on its way to the second one, which was gone already."""
    names = [f"engine {at:02}" for at in range(30)]
    front = Front(*names)
    front.loop.submit([query("p")], front.hear)
    front.loop.took(names[0], ["p"])
    for name in names[:10]:
        front.engines.lose(name)
    assert front.heard == []
    # But not without end: it may be so bad that no engine can say that it has come.
    for name in names[10:]:
        front.engines.lose(name)
    assert [update.code for update in front.heard] == ["engine_lost"]


def test_an_engine_that_was_gone_before_it_was_asked_is_no_loss() -> None:
    front = Front("a", "b", "c")
    front.engines.broken = {"a", "b"}
    front.loop.submit([query("p")], front.hear)
    assert [engine for engine, _ in front.engines.asked] == ["c"]
    front.engines.lose("c")
    assert front.heard == []


def test_what_leaves_in_peace_goes_on_and_its_usage_is_summed() -> None:
    front = Front("a", "b")
    front.loop.submit([query("p")], front.hear)
    front.engines.say("a", Update("p", (7,), "x"))
    front.loop.leaves("a")
    assert front.engines.verbs == [("give", "a", None)]
    front.engines.say("a", Update("p", (8,), "", "moved", usage=USAGE))
    assert front.engines.where[-1] == ("p", "b")
    front.engines.say("b", Update("p", (9,), "z", "stop", usage=USAGE), 2)
    assert [update.finish_reason for update in front.heard] == [None, None, "stop"]
    usage = front.heard[-1].usage
    assert usage is not None and (usage.useful_slots, usage.preemptions, usage.generated_tokens) == (20, 2, 2)
    front.loop.submit([query("q")], front.hear)
    assert front.engines.where[-1] == ("q", "b")


def test_without_an_engine_queries_wait_for_one() -> None:
    front = Front("a")
    front.loop.submit([query("p")], front.hear)
    front.engines.lose("a")
    assert front.heard == [] and front.loop.not_ready() == "no engine is there"
    # As many more may wait as wait in one engine.
    front.loop.submit([query("q")], front.hear)
    with pytest.raises(EngineUnhealthy, match="2 queries wait"):
        front.loop.submit([query("r")], front.hear)
    front.engines.there = ["b"]
    front.engines.hearing.came("b")
    assert front.engines.where[1:] == [("p", "b"), ("q", "b")]


def test_admission_is_by_the_sum_of_engines() -> None:
    front = Front("a", "b")
    front.loop.submit([query(str(at)) for at in range(6)], front.hear)
    with pytest.raises(QueueFull, match="at most 4"):
        front.loop.submit([query("x")], front.hear)
    assert len(front.engines.asked) == 6 and "6 queries are waiting" in (front.loop.not_ready() or "")
    front.loop.stop_admitting()
    with pytest.raises(ShuttingDown):
        front.loop.check_room()


def test_choices_of_a_prompt_go_to_one_engine() -> None:
    front = Front("a", "b")
    front.loop.submit([query(name, sibling_of="p") for name in "pqr"], front.hear)
    assert {engine for _, engine in front.engines.where} == {"a"}


def test_a_choice_does_not_go_back_to_an_engine_that_leaves() -> None:
    """Its first choice may still be there, because its last update has not come yet."""
    front = Front("a", "b")
    front.loop.submit([query(name, sibling_of="p") for name in "pq"], front.hear)
    front.loop.leaves("a")
    front.engines.say("a", Update("q", (), "", "moved", usage=USAGE))
    assert front.engines.where[-1] == ("q", "b")


def test_cancelled_queries_are_cancelled_where_they_are() -> None:
    front = Front("a", "b")
    front.loop.submit([query("p"), query("q")], front.hear)
    front.loop.cancel(["q", "nobody"])
    assert front.engines.verbs == [("cancel", "b", ["q"])]
    assert not front.loop.drain(0.0)
    assert [update.finish_reason for update in front.heard] == ["cancelled", "cancelled"]


def stats(running: int, **more: Any) -> Stats:
    numbers = dict.fromkeys((known for known in Stats.__dataclass_fields__ if known not in _OTHERS), 2)
    return Stats(**{**numbers, "running": running, "slots": Slots(useful=3), "outcomes": {"finished": 1}, **more})


_OTHERS = ("slots", "outcomes", "costs")


def test_statistics_are_summed() -> None:
    front = Front("a", "b")
    front.loop.submit([query("p")], front.hear)
    front.engines.say("a", Update("p", (7,)), stats=stats(3, last_iteration_age_seconds=0.5))
    front.engines.say("b", Update("x", (7,)), stats=stats(4, last_iteration_age_seconds=0.25))
    both = front.loop.stats()
    assert (both.running, both.rows, both.last_iteration_age_seconds) == (7, 4, 0.5)
    assert both.slots.useful == 6 and both.outcomes == {"finished": 2}
    front.engines.say("b", Update("x", (7,)), stats=stats(4, submitted=6, prompt_tokens=9))
    front.engines.lose("b")
    left = front.loop.stats()
    # What was done stays counted, and what was live there has moved.
    assert (left.running, left.rows, left.submitted, left.prompt_tokens) == (3, 2, 8, 11)
    assert left.slots.useful == 6 and left.outcomes == {"finished": 2, "moved": 5}
    assert dict(front.loop.stats_by_engine()) == {"a": stats(3, last_iteration_age_seconds=0.5)}


def test_keys_and_values_that_were_laid_down_go_to_the_next_engine_once() -> None:
    front = Front("a", "b")
    front.loop.submit([query("p")], front.hear)
    front.loop.leaves("a")
    front.engines.say("a", Update("p", (7,), "x", "moved", usage=USAGE), laid_down={"p": "there"})
    assert front.engines.asked[-1][1]["laid_down"] == "there"
    front.engines.there = ["c"]
    front.engines.hearing.lost("b")
    assert front.engines.where[-1] == ("p", "c") and front.engines.asked[-1][1]["laid_down"] is None


@pytest.mark.parametrize("trouble", ["", "gone", "other tokens", "other stamp", "other version", "cut", "no parts"])
def test_keys_and_values_that_do_not_fit_are_computed_again(trouble: str) -> None:
    segment = KVSegment(query("p"), [1, 2, 3, 7], "stamp", 3, 3, [torch.arange(6.0)])
    parcel = pack(segment, 0.0)
    changed = {"other tokens": {"tokens": [1, 2, 3, 8]}, "other stamp": {"stamp": "x"}, "other version": {"version": 9}}
    header = {**parcel.header, **changed.get(trouble, {})}
    parts = {"cut": [parcel.parts[0][:5]], "no parts": []}.get(trouble, list(parcel.parts))

    def fetch(where: Any) -> Parcel:
        assert where == "there"
        if trouble == "gone":
            raise KeyError(where)
        return Parcel(header, parts)

    ask = json.loads(json.dumps(ask_of(query("p"), [7], 2, "stamp", 0.0, "there")))
    attempt, arrived = segment_of(ask, 0.0, never, fetch)
    assert (attempt, arrived.tokens, arrived.computed) == (2, [1, 2, 3, 7], 3)
    assert (arrived.cached, len(arrived.parts)) == ((0, 0) if trouble else (3, 1))


@pytest.mark.parametrize("silent", [True, False])
def test_an_engine_that_hangs_is_given_up(silent: bool) -> None:
    front = Front("a", "b")
    front.loop.submit([query("p")], front.hear)
    front.engines.say("a", Update("p", (7,), "x"))
    front.loop.check()
    for _ in range(3):
        front.now += SETTINGS.hang_seconds + 1
        if not silent:
            front.engines.tell("a", News(stuck_seconds=front.now - 100.0))
        front.loop.check()
    assert front.engines.verbs == []
    front.loop.check()
    assert front.engines.verbs == [("abandon", "a", None)] and front.engines.where[-1] == ("p", "b")
    front.engines.say("a", Update("p", (6,), "no"))
    front.engines.say("b", Update("p", (8,), "y", "stop", usage=USAGE), 2)
    assert "".join(update.text for update in front.heard) == "xy"


def test_an_engine_that_is_heard_or_has_nothing_to_do_is_kept() -> None:
    front = Front("a", "b")
    front.loop.submit([query("p")], front.hear)
    for _ in range(9):
        front.now += SETTINGS.hang_seconds - 1
        front.engines.tell("a", News())
        front.loop.check()
    assert front.engines.verbs == []


def test_a_query_without_an_engine_waits_no_longer_than_it_may() -> None:
    front = Front("a")
    front.loop.submit([query("p", start_by=110.0), query("q", end_by=120.0), query("r")], front.hear)
    front.engines.say("a", Update("q", (7,), "x"))
    front.engines.lose("a")
    front.now = 111.0
    front.loop.check()
    front.now = 121.0
    front.loop.check()
    ends = [(update.query_id, update.finish_reason) for update in front.heard[1:]]
    assert ends == [("p", "expired"), ("q", "expired")] and "--queue-timeout" in (front.heard[1].error or "")


def test_all_of_an_update_crosses() -> None:
    scores = (TokenLogprobs(7, -0.5, 2, ((8, -0.25), (7, -0.5))),)
    update = Update("p", (7,), "é", "stop", "why", USAGE, scores, scores, True, "s", "engine_lost")
    for one in (update, Update("p"), Update("p", (7,), "x")):
        prices = Prices(Line(0.5, 0.25), 0.125, None, Line(1.0, 2.0))
        news = News([(3, one)], stats(1), 2.5, {"p": ["there", 3]}, prices)
        assert news_of(json.loads(json.dumps(message_of(news)))) == news
    assert about_of(json.loads(json.dumps(introduction(ABOUT)))) == ABOUT


@pytest.mark.parametrize("reader", [news_of, about_of, lambda message: segment_of(message, 0.0, never)])
def test_other_versions_are_refused_by_their_number(reader: Any) -> None:
    with pytest.raises(BadMessage, match="version 9"):
        reader({"wire": 9})
    with pytest.raises(BadMessage, match="this is no"):
        reader({"wire": WIRE})


def test_engines_agree_by_their_weights() -> None:
    """If only what rows keep of tokens differs, queries go on from their tokens."""
    ours = replace(ABOUT, weights="w")
    ours.check_same(replace(ours, stamp="other"))
    for other in (replace(ours, weights="v"), replace(ours, model="n")):
        with pytest.raises(BadMessage, match="another model, or other weights"):
            ours.check_same(other)


def test_an_ask_is_plain_json() -> None:
    ask = ask_of(query("p"), [7], 2, "stamp", 100.0)
    assert json.loads(json.dumps(ask))["wire"] == WIRE
