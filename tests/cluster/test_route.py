"""Which engine is asked: examples, and what holds for any numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from baton.cluster.route import BLOCK_TOKENS, HeldPrefixes, blocks_of, choose

ENGINES = some.lists(some.tuples(*[some.integers(0, 1000)] * 3), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("work", "held", "asked", "chosen"),
    [
        ({"a": 5, "b": 4}, {}, {}, "b"),
        ({"b": 4, "a": 4}, {}, {}, "a"),
        ({"a": 4, "b": 4}, {}, {"a": 7, "b": 6}, "b"),
        ({"a": 4, "b": 4, "c": 4}, {}, {"a": 7, "b": 6}, "c"),
        ({"a": 90, "b": 40}, {"a": 64}, {"a": 7, "b": 6}, "a"),
        ({"a": 200, "b": 40}, {"a": 64}, {}, "b"),
        ({"a": 200, "b": 40}, {"a": 64}, {"b": 7}, "b"),
        ({}, {}, {"a": 1}, None),
    ],
)
def test_examples(work: dict[str, int], held: dict[str, int], asked: dict[str, int], chosen: str | None) -> None:
    assert choose(100, work, held, asked) == chosen


@given(ENGINES)
def test_nobody_waits_behind_more_work_than_elsewhere(engines: list[tuple[int, int, int]]) -> None:
    work, held, asked = ({str(at): one[which] for at, one in enumerate(engines)} for which in range(3))
    chosen = choose(1000, work, held, asked)
    assert chosen is not None
    assert all(work[chosen] - held[chosen] <= work[one] - held[one] for one in work)


def test_a_prefix_is_held_up_to_where_prompts_part() -> None:
    held, prompt = HeldPrefixes(), list(range(100))
    held.add("a", blocks_of(prompt))
    assert held.tokens(blocks_of(prompt)) == {"a": 96}
    assert held.tokens(blocks_of([*prompt[:70], 7, *prompt[71:]])) == {"a": 64}
    assert held.tokens(blocks_of([1, *prompt])) == {}
    held.add("b", blocks_of(prompt[:40]))
    assert held.tokens(blocks_of(prompt)) == {"a": 96, "b": 32}
    held.forget("a")
    assert held.tokens(blocks_of(prompt)) == {"b": 32}


def test_what_was_asked_longest_ago_is_forgotten() -> None:
    held = HeldPrefixes(most=3)
    first, second = [1] * (2 * BLOCK_TOKENS + 1), [2] * (2 * BLOCK_TOKENS + 1)
    held.add("a", blocks_of(first))
    held.add("b", blocks_of(second))
    assert held.tokens(blocks_of(second)) == {"b": 64}
    assert held.tokens(blocks_of(first)) == {}


def test_the_last_token_is_in_no_block() -> None:
    assert len(blocks_of([1] * BLOCK_TOKENS)) == 0 and len(blocks_of([1] * (BLOCK_TOKENS + 1))) == 1
