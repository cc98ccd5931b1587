"""The batch's five verbs: what each does, what it refuses without changing anything, and every slot counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.batch.batch import RectangleBatch
from baton.batch.prefill import PrefillHere
from baton.batch.rows import Rows
from baton.core.errors import Refused
from baton.core.events import Slots
from baton.core.query import Query
from baton.core.step import ALL_PENDING, Chunk, Feeding
from baton.kv.segment import KVSegment, arrived
from random_batch import query_of
from toy import (
    COLUMNS,
    NAN,
    STAMP,
    Say,
    ToyForward,
    hashed,
    prompt_of,
    toy_aligned_rows,
    toy_alone,
    toy_rows,
    toy_segment,
)


def batch_of(rows: int = 3, capacity: int = 4, say: Say = hashed) -> RectangleBatch:
    return RectangleBatch(toy_rows(capacity, ToyForward(say)), range(capacity), rows)


def asked(name: str, prompt_tokens: int = 4, limit: int = 8) -> Query:
    return query_of(name, prompt_of(prompt_tokens, seed=sum(name.encode())), limit)


def filled(*queries: Query, rows: int = 3, capacity: int = 4, say: Say = hashed) -> RectangleBatch:
    """A batch whose queries have each drawn their first token."""
    batch = batch_of(rows, capacity, say)
    for query in queries:
        batch.insert(toy_segment(query))
    batch.step(ALL_PENDING, Feeding.RAGGED)
    return batch


def state_of(batch: RectangleBatch) -> Any:
    """All that a verb could have changed."""
    rectangle = batch._rows.rectangle
    occupants = {row: (o.query.id, list(o.tokens), o.computed) for row, o in batch._rows._row_states.items()}
    content = [buffer.clone().tolist() for buffer in (*rectangle.keys, *rectangle.values)]
    return batch.rows, dict(batch.lens), list(rectangle.lens), occupants, dict(batch._rows._row_of), content


def run_out(batch: RectangleBatch, query: Query, drawn: list[int]) -> list[int]:
    """Runs steps until the query has all its tokens. Returns them."""
    while len(drawn) < query.limit_tokens:
        drawn.append(batch.step(1, Feeding.RAGGED).tokens[query.id])
    return drawn


FOREIGN = query_of("foreign", [3], 2)
REFUSALS: dict[str, tuple[Callable[[], RectangleBatch], Callable[[RectangleBatch], object]]] = {
    "insert, no free row": (
        lambda: filled(asked("a"), asked("b"), rows=2),
        lambda batch: batch.insert(toy_segment(asked("c"))),
    ),
    "insert, no room for its tokens": (
        lambda: filled(asked("a")),
        lambda batch: batch.insert(toy_segment(asked("c", COLUMNS + 1))),
    ),
    "insert, foreign stamp": (lambda: filled(asked("a")), lambda batch: batch.insert(arrived(FOREIGN, "other"))),
    "insert, already in": (lambda: filled(asked("a")), lambda batch: batch.insert(toy_segment(asked("a")))),
    "remove, not in": (lambda: filled(asked("a")), lambda batch: batch.remove("b")),
    "detach, not in": (lambda: filled(asked("a")), lambda batch: batch.detach("b")),
    "resize, fewer than are running": (lambda: filled(asked("a"), asked("b")), lambda batch: batch.resize(1)),
    "resize, none": (lambda: batch_of(), lambda batch: batch.resize(0)),
    "resize, above the most": (lambda: filled(asked("a")), lambda batch: batch.resize(5)),
    "step, empty batch": (lambda: batch_of(), lambda batch: batch.step(1, Feeding.RAGGED)),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_verb_that_refuses_changes_nothing(case: str) -> None:
    make, verb = REFUSALS[case]
    batch = make()
    before = state_of(batch)
    with pytest.raises(Refused):
        verb(batch)
    assert state_of(batch) == before


@pytest.mark.parametrize("stamp", ["other", STAMP])
def test_a_refused_segment_is_still_whole(stamp: str) -> None:
    batch = filled(asked("a"), asked("b"), rows=2)
    other = filled(asked("c"))
    segment = other.detach("c")
    segment.stamp = stamp
    before = (list(segment.tokens), segment.cached, segment.computed, [k.tolist() for k in segment.parts])
    with pytest.raises(Refused):
        batch.insert(segment)
    assert (list(segment.tokens), segment.cached, segment.computed, [k.tolist() for k in segment.parts]) == before


def test_an_inserted_segment_is_released_and_its_query_has_a_row() -> None:
    released: list[str] = []
    segment = toy_segment(asked("a"))
    segment.on_release = lambda: released.append("a")
    batch = batch_of()
    batch.insert(segment)
    assert released == ["a"]
    assert dict(batch.lens) == {"a": 0}


def test_a_removed_query_is_gone_and_its_row_and_memory_are_free() -> None:
    batch = filled(asked("a"), asked("b"), rows=2)
    used = batch.bytes_used
    batch.remove("a")
    assert dict(batch.lens) == {"b": 4}
    assert batch.bytes_used == used // 2
    batch.insert(toy_segment(asked("c")))
    assert set(batch.lens) == {"b", "c"}


def test_a_detached_segment_goes_on_in_another_row_where_it_was() -> None:
    a, b, c = asked("a", 5), asked("b", 3), asked("c", 7)
    batch = filled(a, b, c)
    row = batch._rows._row_of["c"]
    first = batch.step(1, Feeding.RAGGED)
    segment = batch.detach("c")
    assert (segment.cached, segment.pending, segment.tokens[:7]) == (8, 1, list(c.prompt))
    assert "c" not in batch.lens
    batch.remove("a")
    batch.insert(segment)
    assert batch._rows._row_of["c"] != row
    drawn = segment.tokens[7:]
    assert drawn[-1] == first.tokens["c"]
    assert run_out(batch, c, drawn) == toy_alone(c)


def test_a_detached_segment_lives_in_memory_of_its_own() -> None:
    a = asked("a")
    batch = filled(a)
    segment = batch.detach("a")
    batch.insert(toy_segment(asked("b")))
    batch.step(ALL_PENDING, Feeding.RAGGED)
    assert segment.parts[0].flatten().tolist() == [float(token) for token in a.prompt]


def test_a_forgotten_segment_is_fed_again_and_says_the_same() -> None:
    a = asked("a")
    batch = filled(a)
    segment = batch.detach("a")
    segment.release()
    batch.insert(segment)
    drawn = segment.tokens[4:]
    stepped = batch.step(ALL_PENDING, Feeding.RAGGED)
    assert run_out(batch, a, [*drawn, stepped.tokens["a"]]) == toy_alone(a)


def test_fewer_rows_pack_those_that_run_and_more_rows_take_more() -> None:
    queries = [asked(name) for name in "abcd"]
    batch = filled(*queries, rows=4)
    batch.remove("a")
    batch.remove("c")
    batch.resize(2)
    assert batch.rows == 2
    assert max(batch._rows._row_of.values()) < 2
    with pytest.raises(Refused):
        batch.insert(toy_segment(asked("e")))
    drawn = {name: [toy_alone(query)[0]] for name, query in zip("bd", (queries[1], queries[3]), strict=True)}
    batch.resize(3)
    batch.insert(toy_segment(asked("e")))
    while len(drawn["b"]) < 8:
        for name, token in batch.step(1, Feeding.SELECTIVE).tokens.items():
            drawn.setdefault(name, []).append(token)
    assert drawn["b"] == toy_alone(queries[1])
    assert drawn["d"] == toy_alone(queries[3])


def test_columns_are_those_of_the_longest_row() -> None:
    batch = batch_of()
    assert batch.columns == 0
    batch = filled(asked("a", 4), asked("b", 9))
    assert batch.columns == 9
    batch.remove("b")
    assert batch.columns == 4


def test_a_step_feeds_at_most_what_it_was_told_and_draws_only_where_nothing_is_left() -> None:
    a, b = asked("a", 5), asked("b", 2)
    batch = batch_of()
    batch.insert(toy_segment(a))
    batch.insert(toy_segment(b))
    stepped = batch.step(3, Feeding.RAGGED)
    assert dict(batch.lens) == {"a": 3, "b": 2}
    assert stepped.tokens == {"b": toy_alone(b)[0]}
    stepped = batch.step(3, Feeding.RAGGED)
    assert dict(batch.lens) == {"a": 5, "b": 3}
    assert stepped.tokens == {"a": toy_alone(a)[0], "b": toy_alone(b)[1]}


@pytest.mark.parametrize("how", list(Feeding))
def test_however_tokens_are_laid_out_they_say_the_same(how: Feeding) -> None:
    queries = [asked("a", 5), asked("b", 2), asked("c", 9)]
    batch = batch_of()
    drawn: dict[str, list[int]] = {}
    for query in queries:
        batch.insert(toy_segment(query))
    for _ in range(8):
        for name, token in batch.step(ALL_PENDING, how).tokens.items():
            drawn.setdefault(name, []).append(token)
    assert drawn == {query.id: toy_alone(query) for query in queries}


def test_a_padded_step_counts_what_aligns_rows_as_padding() -> None:
    batch = batch_of()
    batch.insert(toy_segment(asked("a", 5)))
    batch.insert(toy_segment(asked("b", 2)))
    stepped = batch.step(ALL_PENDING, Feeding.PADDED)
    # [2, 5] slots: 7 real and 3 padding; attention reads two rows of 5 columns, of which 7 are needed.
    assert stepped.slots == Slots(useful=7, padding=3, columns_needed=7, columns_padding=3)
    assert stepped.shares == {"a": (5, 0), "b": (2, 3)}


def test_a_flat_step_computes_no_padding() -> None:
    batch = batch_of()
    batch.insert(toy_segment(asked("a", 5)))
    batch.insert(toy_segment(asked("b", 2)))
    stepped = batch.step(ALL_PENDING, Feeding.SELECTIVE)
    assert stepped.slots == Slots(useful=7, columns_needed=7)
    assert stepped.shares == {"a": (5, 0), "b": (2, 0)}


def test_a_decode_step_counts_one_useful_slot_a_row_and_the_columns_read_together() -> None:
    batch = filled(asked("a", 5), asked("b", 2))
    stepped = batch.step(1, Feeding.RAGGED)
    # Rows of 6 and 3 columns, read together as two of 6.
    assert stepped.slots == Slots(useful=2, columns_needed=9, columns_padding=3)
    assert stepped.shares == {"a": (1, 0), "b": (1, 0)}


def test_a_row_without_a_query_computes_no_slot() -> None:
    batch = filled(asked("a", 5), asked("b", 2), asked("c", 3))
    batch.remove("b")
    stepped = batch.step(1, Feeding.RAGGED)
    # Attention may read the hole's columns: three rows of 6, of which 6 and 4 are needed.
    assert stepped.slots == Slots(useful=2, columns_needed=10, columns_padding=8)


def test_rows_of_finished_queries_count_as_finished_rows_and_say_nothing() -> None:
    a, b = asked("a", 5), asked("b", 2)
    batch = filled(a, b)
    before = dict(batch.lens)
    stepped = batch.step(ALL_PENDING, Feeding.PADDED, {"b"})
    # b's last column is read again (2), beside a's 6: two rows of 6.
    assert stepped.slots == Slots(useful=1, finished_row=1, columns_needed=6, columns_padding=6)
    assert stepped.shares == {"a": (1, 0)}
    assert stepped.tokens == {"a": toy_alone(a)[1]}
    assert dict(batch.lens) == {"a": before["a"] + 1, "b": before["b"]}
    row = batch._rows._row_of["b"]
    assert not batch._rows.rectangle.keys[0][row, before["b"] :].any(), "its own column is fed again, and no new one"
    assert batch.detach("b").tokens == [*b.prompt, toy_alone(b)[0]]


def test_a_finished_row_beside_a_newcomers_prompt_is_padded_as_well() -> None:
    batch = filled(asked("b", 2))
    batch.insert(toy_segment(asked("a", 5)))
    stepped = batch.step(ALL_PENDING, Feeding.PADDED, {"b"})
    assert stepped.slots == Slots(useful=5, finished_row=1, padding=4, columns_needed=5, columns_padding=5)
    assert stepped.shares == {"a": (5, 0)}


def test_forgotten_tokens_count_as_recomputed_once_each() -> None:
    batch = filled(asked("a", 5))
    batch.step(1, Feeding.RAGGED)
    segment = batch.detach("a")
    segment.release()
    batch.insert(segment)
    # 5 + 1 tokens were fed before; the second generated one was not.
    stepped = batch.step(4, Feeding.RAGGED)
    assert stepped.slots == Slots(recomputed=4, columns_needed=4)
    assert stepped.shares == {"a": (0, 4)}
    stepped = batch.step(ALL_PENDING, Feeding.RAGGED)
    assert stepped.slots == Slots(useful=1, recomputed=2, columns_needed=7)
    assert stepped.shares == {"a": (1, 2)}
    assert batch.step(1, Feeding.RAGGED).slots == Slots(useful=1, columns_needed=8)


def test_a_detached_segment_that_was_kept_recomputes_nothing() -> None:
    batch = filled(asked("a", 5))
    batch.insert(batch.detach("a"))
    assert batch.step(1, Feeding.RAGGED).slots == Slots(useful=1, columns_needed=6)


def test_a_row_that_is_not_finite_fails_by_name_and_draws_nothing() -> None:
    a, b = asked("a"), asked("b")

    def say(tokens: list[int]) -> int:
        return NAN if tokens[:4] == list(b.prompt) and len(tokens) > 5 else hashed(tokens)

    batch = filled(a, b, say=say)
    batch.step(1, Feeding.RAGGED)
    stepped = batch.step(1, Feeding.RAGGED)
    assert set(stepped.failed) == {"b"}
    assert stepped.tokens == {"a": toy_alone(a)[2]}
    batch.remove("b")
    assert batch.step(1, Feeding.RAGGED).tokens == {"a": toy_alone(a)[3]}


def sharing() -> tuple[RectangleBatch, PrefillHere]:
    """A batch with query "a" and a prefiller with query "p" on the same rows."""
    rows = toy_rows(5)
    batch, prefiller = RectangleBatch(rows, range(2), 2), PrefillHere(rows, range(2, 5), beside_batch=True)
    batch.insert(toy_segment(asked("a")))
    batch.step(ALL_PENDING, Feeding.RAGGED)
    prefiller.start(toy_segment(asked("p", 6)))
    return batch, prefiller


def test_a_step_feeds_prompts_of_a_prefiller_beside_in_one_forward() -> None:
    batch, prefiller = sharing()
    stepped = batch.step(1, Feeding.RAGGED, frozenset(), {"p": 4})
    assert stepped.slots == Slots(useful=5, columns_needed=5 + 4)
    assert stepped.tokens == {"a": toy_alone(asked("a"))[1]}
    assert (dict(batch.lens), dict(prefiller.lens)) == ({"a": 5}, {"p": 4})
    stepped = batch.step(1, Feeding.RAGGED, frozenset(), {"p": 4})
    assert stepped.tokens == {"a": toy_alone(asked("a"))[2], "p": toy_alone(asked("p", 6))[0]}
    assert (batch.bytes_used, prefiller.bytes_used) == (6 * 8, 6 * 8)
    batch.insert(prefiller.take("p"))
    assert (dict(batch.lens), dict(prefiller.lens), prefiller.room) == ({"a": 6, "p": 6}, {}, 3)
    assert batch.step(1, Feeding.RAGGED).tokens["p"] == toy_alone(asked("p", 6))[1]


def test_batch_and_prefiller_touch_only_their_own_rows() -> None:
    batch, prefiller = sharing()
    for refused in (
        lambda: batch.remove("p"),
        lambda: batch.detach("p"),
        lambda: prefiller.take("a"),
        lambda: prefiller.advance([Chunk("a", 1)]),
        lambda: batch.insert(toy_segment(asked("p", 6))),
        lambda: prefiller.start(toy_segment(asked("a"))),
        lambda: batch.resize(3),
    ):
        before = (state_of(batch), dict(prefiller.lens))
        with pytest.raises(Refused):
            refused()
        assert (state_of(batch), dict(prefiller.lens)) == before
    batch.resize(1)
    assert (dict(batch.lens), dict(prefiller.lens), prefiller.room) == ({"a": 4}, {"p": 0}, 2)
    batch.remove("a")
    with pytest.raises(Refused, match="empty"):
        batch.step(1, Feeding.RAGGED)


@pytest.mark.parametrize("where", ["forward", "sampler"])
def test_a_step_that_raises_has_fed_nothing(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it may be tried again, or with fewer rows."""
    a, b = asked("a", 5), asked("b", 3)
    batch = batch_of()
    batch.insert(toy_segment(a))
    batch.insert(toy_segment(b))

    def fails(*args: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        if where == "forward":
            patch.setattr(batch._rows.feeder.forward, "fill", fails)
        else:
            patch.setattr(batch._rows.feeder, "sampler", fails)
        with pytest.raises(RuntimeError):
            batch.step(ALL_PENDING, Feeding.RAGGED)
    assert dict(batch.lens) == {"a": 0, "b": 0}
    stepped = batch.step(ALL_PENDING, Feeding.RAGGED)
    assert stepped.tokens == {"a": toy_alone(a)[0], "b": toy_alone(b)[0]}
    assert stepped.slots.recomputed == 0


def _step(batch: RectangleBatch, feed: int, how: Feeding, drawn: dict[str, list[int]]) -> None:
    """Makes a step, and removes the queries that have twelve tokens."""
    for name, token in batch.step(feed, how).tokens.items():
        drawn[name].append(token)
        if len(drawn[name]) == 12:
            batch.remove(name)


@pytest.mark.parametrize("rows", [toy_rows, toy_aligned_rows])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_order_of_verbs_gives_each_query_what_it_says_alone(
    rows: Callable[[int], Rows], data: st.DataObject
) -> None:
    batch = RectangleBatch(rows(4), range(4), 3)
    queries = {f"q{i}": asked(f"q{i}", 1 + i % 5, limit=12) for i in range(6)}
    drawn: dict[str, list[int]] = {name: [] for name in queries}
    outside: dict[str, KVSegment] = {name: toy_segment(query) for name, query in queries.items()}
    for _ in range(25):
        verb = data.draw(st.sampled_from(["insert", "step", "step", "detach", "resize", "forget"]))
        if verb == "insert" and outside and len(batch.lens) < batch.rows:
            batch.insert(outside.pop(data.draw(st.sampled_from(sorted(outside)))))
        elif verb == "step" and batch.lens:
            feed, how = data.draw(st.sampled_from([1, 2, ALL_PENDING])), data.draw(st.sampled_from(list(Feeding)))
            _step(batch, feed, how, drawn)
        elif verb in ("detach", "forget") and batch.lens:
            name = data.draw(st.sampled_from(sorted(batch.lens)))
            outside[name] = batch.detach(name)
            if verb == "forget":
                outside[name].release()
        elif verb == "resize":
            batch.resize(data.draw(st.integers(max(1, len(batch.lens)), 4)))
        assert len(batch.lens) <= batch.rows
        assert batch.bytes_used == sum(batch.lens.values()) * 8
    for name, tokens in drawn.items():
        assert tokens == toy_alone(queries[name])[: len(tokens)]
    for name in list(batch.lens):
        batch.remove(name)
    assert batch.bytes_used == 0
    assert not any(bool(torch.any(buffer)) for buffer in batch._rows.rectangle.keys)
