"""A segment is tokens and the keys and values of the first of them."""

from __future__ import annotations

import pytest
import torch

from baton.kv.segment import KVSegment, arrived
from random_batch import query_of

QUERY = query_of("a", [5, 6, 7], 4)


def test_a_query_that_just_arrived_has_its_whole_prompt_left_to_feed() -> None:
    segment = arrived(QUERY, "tiny")
    assert (segment.tokens, segment.cached, segment.pending, segment.generated) == ([5, 6, 7], 0, 3, 0)
    assert segment.stamp == "tiny"
    segment.tokens.append(8)
    assert QUERY.prompt == (5, 6, 7)


@pytest.mark.parametrize(
    ("tokens", "cached", "pending", "generated"),
    [
        ([5, 6, 7], 2, 1, 0),  # half prefilled
        ([5, 6, 7, 8], 3, 1, 1),  # prefilled: the first generated token is left to feed
        ([5, 6, 7, 8, 9], 4, 1, 2),  # preempted and kept
        ([5, 6, 7, 8, 9], 0, 5, 2),  # preempted and forgotten
    ],
)
def test_where_a_query_stands_is_read_from_what_is_cached(
    tokens: list[int], cached: int, pending: int, generated: int
) -> None:
    segment = KVSegment(QUERY, tokens, "tiny", cached=cached)
    assert (segment.pending, segment.generated) == (pending, generated)


def test_a_release_forgets_keys_and_values_and_keeps_tokens_and_what_was_computed() -> None:
    told: list[str] = []
    keys = [torch.ones(4, 1, 1)]
    segment = KVSegment(
        QUERY,
        [5, 6, 7, 8, 9],
        "tiny",
        cached=4,
        computed=4,
        parts=keys,
        on_release=lambda: told.append("x"),
    )
    segment.release()
    segment.release()
    assert told == ["x"]
    assert (segment.tokens, segment.cached, segment.computed) == ([5, 6, 7, 8, 9], 0, 4)
    assert (segment.parts, segment.bytes) == ((), 0)
