"""The sum of what is held for all clients is bounded, and the largest holder gives up first."""

from __future__ import annotations

import random
from functools import partial

from baton.engine.held import Held, Hold


def holders(held: Held, count: int) -> tuple[list[Hold], list[int]]:
    dropped: list[int] = []
    return [held.hold(partial(dropped.append, at)) for at in range(count)], dropped


def test_the_largest_gives_up_what_it_has() -> None:
    held = Held(100)
    (a, b, c), dropped = holders(held, 3)
    a.set(60)
    b.set(40)
    assert (held.bytes, dropped) == (100, [])
    c.set(1)
    assert (held.bytes, dropped, a.gone) == (41, [0], True)
    a.set(500)
    assert held.bytes == 41, "what was given up counts no more"
    c.set(99)
    assert (held.bytes, dropped) == (40, [0, 2]), "it may be the one that grew"
    b.free()
    assert held.bytes == 0


def test_of_equals_the_oldest_and_as_many_as_it_takes() -> None:
    held = Held(100)
    some, dropped = holders(held, 4)
    for hold in some[:3]:
        hold.set(33)
    some[3].set(1)
    assert dropped == [], "100 are as many as may be"
    some[3].set(2)
    assert dropped == [0]


def test_what_is_in_use_is_kept_and_who_comes_goes() -> None:
    held = Held(100)
    (a, b), dropped = holders(held, 2)
    a.set(90)
    a.kept = True
    b.set(20)
    assert (dropped, held.bytes) == ([1], 90)
    a.free()
    assert held.bytes == 0


def test_the_sum_is_never_above_its_bound_and_nothing_is_left() -> None:
    dice = random.Random(3)
    held = Held(1000)
    some, dropped = holders(held, 30)
    for _ in range(3000):
        dice.choice(some).set(dice.randrange(200))
        assert held.bytes == sum(hold.bytes for hold in some) <= 1000
    assert dropped and len(dropped) == len(set(dropped))
    for hold in some:
        hold.free()
    assert held.bytes == 0 and not held._holders
