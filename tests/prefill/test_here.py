"""The prefiller makes segments ready in chunks, packs several without padding, and hands them over at any point."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.batch.batch import RectangleBatch
from baton.batch.prefill import PrefillHere
from baton.core.errors import Refused
from baton.core.events import Slots
from baton.core.query import Query
from baton.core.step import Chunk, Feeding
from baton.kv.segment import arrived
from random_batch import query_of
from toy import COLUMNS, NAN, Say, ToyForward, hashed, prompt_of, toy_alone, toy_rows, toy_segment


def prefiller_of(capacity: int = 3, say: Say = hashed) -> PrefillHere:
    return PrefillHere(toy_rows(capacity, ToyForward(say)), range(capacity), beside_batch=False)


def asked(name: str, prompt_tokens: int) -> Query:
    return query_of(name, prompt_of(prompt_tokens, seed=prompt_tokens), 6)


def test_a_prompt_in_chunks_ends_in_the_token_that_the_whole_prompt_gives() -> None:
    prefiller, a = prefiller_of(), asked("a", 11)
    prefiller.start(toy_segment(a))
    for fed in (4, 8):
        stepped = prefiller.advance([Chunk("a", 4)])
        assert stepped.tokens == {}
        assert stepped.slots == Slots(useful=4, columns_needed=fed)
        assert dict(prefiller.lens) == {"a": fed}
    stepped = prefiller.advance([Chunk("a", 4)])
    assert stepped.tokens == {"a": toy_alone(a)[0]}
    assert stepped.slots == Slots(useful=3, columns_needed=11)
    segment = prefiller.take("a")
    assert (segment.cached, segment.pending, segment.tokens) == (11, 1, [*a.prompt, toy_alone(a)[0]])


def test_chunks_of_several_prompts_are_packed_in_one_forward_without_padding() -> None:
    prefiller = prefiller_of()
    a, b, c = asked("a", 11), asked("b", 2), asked("c", 5)
    for query in (a, b, c):
        prefiller.start(toy_segment(query))
    stepped = prefiller.advance([Chunk("a", 4), Chunk("b", 9), Chunk("c", 5)])
    assert stepped.slots == Slots(useful=11, columns_needed=11)
    assert stepped.tokens == {"b": toy_alone(b)[0], "c": toy_alone(c)[0]}
    assert stepped.shares == {"a": (4, 0), "b": (2, 0), "c": (5, 0)}
    assert prefiller._rows.feeder.forward.calls == {"decode": 0, "fill": 1, "padded": 0}  # type: ignore[attr-defined]


def test_a_segment_taken_at_half_way_goes_on_in_another_prefiller() -> None:
    here, there, a = prefiller_of(), prefiller_of(), asked("a", 11)
    here.start(toy_segment(a))
    here.advance([Chunk("a", 7)])
    segment = here.take("a")
    assert (segment.cached, segment.pending) == (7, 4)
    there.start(segment)
    assert here.room == 3, "the segment's row is free once another has copied it"
    stepped = there.advance([Chunk("a", 20)])
    assert stepped.tokens == {"a": toy_alone(a)[0]}
    assert stepped.slots == Slots(useful=4, columns_needed=11)


def test_a_segment_taken_at_half_way_and_forgotten_starts_again_here() -> None:
    prefiller, a = prefiller_of(), asked("a", 11)
    prefiller.start(toy_segment(a))
    prefiller.advance([Chunk("a", 7)])
    segment = prefiller.take("a")
    segment.release()
    assert (prefiller.room, prefiller.bytes_used) == (3, 0)
    prefiller.start(segment)
    stepped = prefiller.advance([Chunk("a", 20)])
    assert stepped.tokens == {"a": toy_alone(a)[0]}
    assert stepped.slots == Slots(useful=4, recomputed=7, columns_needed=11)


def test_a_segment_taken_at_half_way_can_be_inserted_and_fed_in_the_batch() -> None:
    prefiller, a = prefiller_of(), asked("a", 11)
    batch = RectangleBatch(toy_rows(2), range(2), 2)
    prefiller.start(toy_segment(a))
    prefiller.advance([Chunk("a", 7)])
    batch.insert(prefiller.take("a"))
    assert prefiller.bytes_used == 0
    assert batch.step(9, Feeding.RAGGED).tokens == {"a": toy_alone(a)[0]}


def test_a_taken_segment_keeps_its_row_until_it_is_released() -> None:
    prefiller, a = prefiller_of(1), asked("a", 4)
    prefiller.start(toy_segment(a))
    prefiller.advance([Chunk("a", 4)])
    segment = prefiller.take("a")
    assert prefiller.room == 0
    with pytest.raises(Refused):
        prefiller.start(toy_segment(asked("b", 3)))
    assert segment.parts[0].flatten().tolist() == [float(token) for token in a.prompt]
    segment.release()
    prefiller.start(toy_segment(asked("b", 3)))
    assert dict(prefiller.lens) == {"b": 0}


def test_a_taken_segment_that_was_not_released_may_start_again_in_another_row() -> None:
    prefiller, a = prefiller_of(2), asked("a", 11)
    prefiller.start(toy_segment(a))
    prefiller.advance([Chunk("a", 7)])
    segment = prefiller.take("a")
    assert dict(prefiller.lens) == {}
    with pytest.raises(Refused):
        prefiller.take("a")
    prefiller.start(segment)
    assert (dict(prefiller.lens), prefiller.room) == ({"a": 7}, 1)
    assert prefiller.advance([Chunk("a", 9)]).tokens == {"a": toy_alone(a)[0]}


def test_what_is_refused_changes_nothing() -> None:
    prefiller = prefiller_of(2)
    a, b = asked("a", 6), asked("b", 4)
    prefiller.start(toy_segment(a))
    prefiller.start(toy_segment(b))
    prefiller.advance([Chunk("a", 2)])
    before = (dict(prefiller.lens), prefiller.room, prefiller.bytes_used)
    for refused in (
        lambda: prefiller.start(toy_segment(asked("c", 3))),
        lambda: prefiller.advance([Chunk("a", 2), Chunk("c", 2)]),
        lambda: prefiller.advance([]),
        lambda: prefiller.take("c"),
    ):
        with pytest.raises(Refused):
            refused()
        assert (dict(prefiller.lens), prefiller.room, prefiller.bytes_used) == before
    prefiller.take("b").release()
    before = (dict(prefiller.lens), prefiller.room, prefiller.bytes_used)
    for segment in (toy_segment(a), arrived(asked("d", 3), "other"), toy_segment(asked("e", COLUMNS + 1))):
        with pytest.raises(Refused):
            prefiller.start(segment)
        assert (dict(prefiller.lens), prefiller.room, prefiller.bytes_used) == before
    assert prefiller.advance([Chunk("a", 4)]).tokens == {"a": toy_alone(a)[0]}


def test_a_packed_chunk_that_is_not_finite_fails_by_name_alone() -> None:
    a, b = asked("a", 4), asked("b", 5)
    prefiller = prefiller_of(say=lambda tokens: NAN if tokens == list(a.prompt) else hashed(tokens))
    prefiller.start(toy_segment(a))
    prefiller.start(toy_segment(b))
    stepped = prefiller.advance([Chunk("a", 4), Chunk("b", 5)])
    assert set(stepped.failed) == {"a"}
    assert stepped.tokens == {"b": toy_alone(b)[0]}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.data())
def test_in_whatever_chunks_prompts_are_fed_their_first_tokens_are_right(
    lengths: list[int], data: st.DataObject
) -> None:
    prefiller = prefiller_of(4)
    queries = {f"q{i}": query_of(f"q{i}", prompt_of(length, seed=i), 3) for i, length in enumerate(lengths)}
    for query in queries.values():
        prefiller.start(toy_segment(query))
    useful, tokens = 0, dict[str, Any]()
    while len(tokens) < len(queries):
        left = sorted(set(queries) - set(tokens))
        names = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
        stepped = prefiller.advance([Chunk(name, data.draw(st.integers(1, 8))) for name in names])
        tokens |= stepped.tokens
        useful += stepped.slots.useful
        assert stepped.slots.idle == 0
    assert tokens == {name: toy_alone(query)[0] for name, query in queries.items()}
    assert useful == sum(lengths)
