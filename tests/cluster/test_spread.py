"""Which of two engines a front asks under whole loads: conversations, one prefix that all share, and a burst."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from baton.cluster.prices import Prices
from baton.cluster.route import BLOCK_TOKENS, blocks_of
from baton.cluster.totals import NOTHING
from baton.cluster.wire import News
from baton.core.events import Update
from baton.core.query import Query, SamplingParams
from cluster.test_far import Front

ANSWER = 40
TWO = ("a", "b")


class Load:
    """A front whose engines keep all that they have computed, and what was computed and found there."""

    def __init__(self, *names: str) -> None:
        self.front = Front(*names)
        self._kept: dict[str, set[bytes]] = {name: set() for name in names}
        self.live: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.tokens: Counter[str] = Counter()
        self.queries: Counter[str] = Counter()
        self.cached = 0

    def ask(self, name: str, prompt: Sequence[int]) -> None:
        asked = Query(id=name, prompt=tuple(prompt), params=SamplingParams(), seed=1, limit_tokens=ANSWER, arrived=0.0)
        self.front.loop.submit([asked], self.front.hear, admitted=True)
        where, engine = self.front.engines.where[-1]
        assert where == name
        blocks = blocks_of(prompt)
        kept = self._kept[engine]
        found = next((at for at, block in enumerate(blocks) if block not in kept), len(blocks)) * BLOCK_TOKENS
        self.cached += found
        self.tokens[engine] += len(prompt) - found + ANSWER
        self.queries[engine] += 1
        self.live[name] = (engine, tuple(prompt))

    def end(self, name: str) -> tuple[int, ...]:
        """The query ends, and what it has computed stays. Returns its prompt."""
        engine, prompt = self.live.pop(name)
        self._kept[engine].update(blocks_of(prompt))
        self.front.engines.say(engine, Update(name, (7,), "x", "stop"))
        return prompt


def talks(*names: str) -> int:
    """Twelve conversations of five turns go on in any order. Returns the prompt tokens that were found stored."""
    dice, load, turns = random.Random(3), Load(*names), Counter[str]()
    for talk in range(12):
        load.ask(f"{talk} 0", words(dice, 60))
    while load.live:
        name = dice.choice(sorted(load.live))
        number = name.split()[0]
        said = [*load.end(name), *words(dice, ANSWER), *words(dice, 30)]
        turns[number] += 1
        if turns[number] < 5:
            load.ask(f"{number} {turns[number]}", said)
    return load.cached


def words(dice: random.Random, count: int) -> list[int]:
    return [dice.randrange(250) for _ in range(count)]


def test_conversations_find_what_they_have_computed_nearly_as_in_one_engine() -> None:
    assert talks(*TWO) >= 0.9 * talks("a") > 0


def test_a_prefix_that_all_share_fills_both_engines() -> None:
    """Sixteen clients, twice as many as one engine has rows for; each asks again when it has its answer."""
    dice, load = random.Random(5), Load(*TWO)
    shared = words(dice, 256)
    for at in range(200):
        if len(load.live) == 16:
            load.end(dice.choice(sorted(load.live)))
        load.ask(str(at), [*shared, *words(dice, 20)])
    for counted in (load.tokens, load.queries):
        assert max(counted.values()) <= 1.2 * min(counted[name] for name in TWO), counted


def test_a_burst_to_idle_engines_is_halved() -> None:
    dice, load = random.Random(7), Load(*TWO)
    for at in range(16):
        load.ask(str(at), words(dice, 50))
    assert load.queries == {"a": 8, "b": 8}


def test_bursts_of_an_odd_number_load_both_alike() -> None:
    """All share a prefix, and answers overlap: which engine has one query more changes from burst to burst."""
    dice, load = random.Random(9), Load(*TWO)
    shared = words(dice, 256)
    for burst in range(20):
        for at in range(9):
            load.ask(f"{burst} {at}", [*shared, *words(dice, 20)])
        for name in sorted(load.live):
            load.end(name)
    assert max(load.queries.values()) <= 1.02 * min(load.queries.values())


def test_what_another_front_has_in_an_engine_counts() -> None:
    dice, load = random.Random(11), Load(*TWO)

    def beat(engine: str, **stats: Any) -> None:
        load.front.engines.tell(engine, News(stats=replace(NOTHING, **stats), prices=Prices()))

    beat("a", submitted=9, outcomes={"finished": 5})
    for at in range(10):
        load.ask(str(at), words(dice, 50))
    assert load.queries == {"a": 3, "b": 7}
    # Its own are no others'.
    beat("a", submitted=8, outcomes={"finished": 5})
    beat("b", submitted=7)
    for at in range(10, 14):
        load.ask(str(at), words(dice, 50))
    assert load.queries == {"a": 7, "b": 7}
