"""Rows aligned at their ends: wherever the batch is shifted and rows slide, each keeps what it holds."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.footprint import ALIGNED_SPARE
from baton.kv.aligned import AlignedRectangle, keeping_all
from baton.kv.rectangle import LayerShape

COLUMNS, ROWS = 20, 3


def rectangle() -> AlignedRectangle:
    of = {"capacity": ROWS, "columns": COLUMNS, "dtype": torch.float32, "device": torch.device("cpu")}
    return AlignedRectangle([LayerShape(1, 1, 1), LayerShape(2, 3, 3)], **of)  # type: ignore[arg-type]


def parts_of(numbers: list[int]) -> list[torch.Tensor]:
    """A row's parts, of two layers' shapes, in which each token has its own number."""
    shapes = [(1, 1), (1, 1), (2, 3), (2, 3)]
    column = torch.tensor(numbers, dtype=torch.float32)
    return [column[:, None, None].expand(-1, *shape) * (at + 1) for at, shape in enumerate(shapes)]


def held(body: AlignedRectangle, row: int) -> list[int]:
    """The numbers of a row's tokens; every part says the same."""
    columns = [
        (part / (at + 1)).unique(dim=1).unique(dim=2).flatten().tolist() for at, part in enumerate(body.view(row))
    ]
    assert all(numbers == columns[0] for numbers in columns)
    return [int(number) for number in columns[0]]


def feed(body: AlignedRectangle, rows: dict[int, list[int]]) -> None:
    """As a forward does: room, the new tokens' columns, and then lengths and end."""
    end = body.make_room({row: len(numbers) for row, numbers in rows.items()})
    for row, numbers in rows.items():
        body.lens[row] += len(numbers)
        for part, new in zip(body.view(row), parts_of(numbers), strict=True):
            part[-len(numbers) :] = new
        assert body.starts[row] + body.lens[row] == end
    body.end = end


def test_a_shorter_query_gets_padding_in_front_and_all_end_together() -> None:
    body = rectangle()
    body.write(0, parts_of([1, 2, 3, 4]), 4)
    body.write(2, parts_of([5, 6]), 2)
    assert (body.starts[0], body.starts[2], body.end, body.shifts) == (0, 2, 4, 0)
    feed(body, {0: [7], 2: [8]})
    assert (held(body, 0), held(body, 2), body.end) == ([1, 2, 3, 4, 7], [5, 6, 8], 5)
    # The write column is shared: beside the columns before it, no row has any.
    assert body.keys[0][[0, 2], 4, 0, 0].tolist() == [7, 8]


def test_a_longer_query_shifts_the_whole_batch() -> None:
    body = rectangle()
    body.write(0, parts_of([1, 2]), 2)
    body.write(1, parts_of([3]), 1)
    body.write(2, parts_of([4, 5, 6, 7, 8]), 5)
    assert (body.shifts, body.end, body.starts) == (1, 5, [3, 4, 0])
    assert [held(body, row) for row in range(ROWS)] == [[1, 2], [3], [4, 5, 6, 7, 8]]


def test_columns_of_nobody_in_front_make_room_before_the_batch_is_shifted() -> None:
    body = rectangle()
    body.write(0, parts_of([1, 2, 3, 4]), 4)
    body.write(1, parts_of([5]), 1)
    body.clear(0)
    assert body.first == 3
    body.write(2, parts_of([6, 7, 8]), 3)
    assert (body.shifts, body.first) == (0, 1)


def test_a_batch_at_the_right_edge_drops_the_columns_of_nobody() -> None:
    body = rectangle()
    body.write(0, parts_of([1]), 1)
    body.write(1, parts_of([2, 3]), 2)
    numbers = {0: [1], 1: [2, 3]}
    moved = 0
    for at in range(10, 10 + COLUMNS + ALIGNED_SPARE):
        fresh = [at]
        # No row outgrows the longest text: the older one leaves, and a newcomer of two tokens takes its place.
        row = at % 2
        if len(numbers[row]) > 15:
            body.clear(row)
            numbers[row] = [at + 500, at + 501]
            body.write(row, parts_of(numbers[row]), 2)
        before = body.end
        feed(body, dict.fromkeys(numbers, fresh))
        moved += body.end < before
        numbers = {row: [*some, *fresh] for row, some in numbers.items()}
        assert {row: held(body, row) for row in numbers} == numbers
    assert moved == 1
    assert body.end <= COLUMNS + ALIGNED_SPARE


def test_an_empty_batch_begins_at_its_first_column_again() -> None:
    body = rectangle()
    body.write(0, parts_of([1, 2, 3]), 3)
    body.clear(0)
    body.write(1, parts_of([4]), 1)
    assert (body.starts[1], body.end) == (0, 1)


def test_a_row_takes_a_whole_rows_memory_and_an_empty_one_none() -> None:
    body = rectangle()
    assert body.footprint.of(1) == body.footprint.of(COLUMNS) >= (COLUMNS + ALIGNED_SPARE) * 4 * (2 + 12)
    assert body.footprint.of(0) == 0
    assert body.bytes_of(range(ROWS)) == 0


def test_layers_with_windows_keep_every_token() -> None:
    assert keeping_all([LayerShape(1, 2, 2, window=4)]) == [LayerShape(1, 2, 2)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_happens_to_the_batch_each_row_keeps_what_it_holds(data: st.DataObject) -> None:
    body, expected, number = rectangle(), dict[int, list[int]](), 0
    for _ in range(30):
        verb = data.draw(st.sampled_from(["write", "feed", "feed", "clear"]))
        empty = [row for row in range(ROWS) if row not in expected]
        if verb == "write" and empty:
            row, count = empty[0], data.draw(st.integers(1, COLUMNS))
            numbers = list(range(number, number := number + count))
            body.write(row, parts_of(numbers), count)
            expected[row] = numbers
        elif verb == "feed":
            fed: dict[int, list[int]] = {}
            for row in range(ROWS):
                room = COLUMNS - len(expected.get(row, []))
                # A row that was not written begins with what it is fed.
                if room and (row in expected or data.draw(st.booleans())):
                    count = data.draw(st.integers(1, room))
                    fed[row] = list(range(number, number := number + count))
            # Rows that are full leave.
            for row in [row for row in expected if row not in fed]:
                body.clear(row)
                del expected[row]
            if fed:
                feed(body, fed)
                expected = {row: [*expected.get(row, []), *fed[row]] for row in fed}
        elif verb == "clear" and expected:
            row = data.draw(st.sampled_from(sorted(expected)))
            body.clear(row)
            del expected[row]
        assert {row: held(body, row) for row in expected} == expected
        assert body.end <= COLUMNS + ALIGNED_SPARE
