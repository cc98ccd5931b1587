"""Prompts that are computed by engines of their own: which prompts, and where they go on."""

from __future__ import annotations

from baton.cluster.prices import Line, Prices
from baton.cluster.wire import News
from baton.core.events import Update
from cluster.test_far import USAGE, Front, query


def stays(front: Front) -> list[tuple[str, str, str]]:
    return [(ask["parcel"]["query"]["id"], engine, ask["until"]) for engine, ask in front.engines.asked]


def test_a_prompt_is_computed_there_and_goes_on_with_its_keys_and_values() -> None:
    front = Front("a", "fill")
    front.loop.submit([query("p")], front.hear)
    front.engines.say("fill", Update("p", (7,), "x"))
    front.engines.say("fill", Update("p", (), "", "moved", usage=USAGE), laid_down={"p": "there"})
    assert stays(front) == [("p", "fill", "token"), ("p", "a", "")]
    assert front.engines.asked[-1][1]["laid_down"] == "there"
    # What was told is not computed there again.
    front.engines.there.append("b")
    front.engines.lose("a")
    assert stays(front)[-1] == ("p", "b", "")


def test_a_prompt_that_is_computed_sooner_than_moved_goes_straight_on() -> None:
    front = Front("a", "fill")
    # Moving takes 0.1 s whatever the prompt, computing 0.05 s a token.
    front.engines.tell("a", News(prices=Prices(Line(0.0, 0.05), 0.0, None, Line(0.1, 0.0))))
    front.engines.tell("fill", News(prices=Prices(Line(0.0, 0.05), 0.0, Line(0.0, 0.0), None)))
    front.loop.submit([query("short", prompt=(1,)), query("long", prompt=(1, 2, 3))], front.hear)
    assert stays(front) == [("short", "a", ""), ("long", "fill", "token")]


def test_choices_of_a_prompt_are_computed_together() -> None:
    front = Front("a", "fill 1", "fill 2")
    front.loop.submit([query(name, sibling_of="p") for name in "pq"], front.hear)
    assert stays(front) == [("p", "fill 1", "token"), ("q", "fill 1", "token")]


def test_whoever_is_left_does_all() -> None:
    front = Front("a", "fill")
    front.engines.lose("fill")
    front.loop.submit([query("p")], front.hear)
    assert stays(front) == [("p", "a", "")]
    front = Front("fill")
    front.loop.submit([query("p")], front.hear)
    assert stays(front) == [("p", "fill", "")]
    front.engines.say("fill", Update("p", (7,), "x"))
    front.engines.there.append("fill 2")
    front.engines.lose("fill")
    assert stays(front)[-1] == ("p", "fill 2", "")
