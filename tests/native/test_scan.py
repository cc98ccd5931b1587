"""Lines that are carried out token after token: put together, and divided only into parts that are apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from baton.core.errors import LoadError
from baton.native.graph import Buffer, Line, Ref, Space
from baton.native.scan import PART_FLOATS, arrange, divide, write_at_once

HEADS, SIZE = 4, PART_FLOATS
WHOLE = (0, 0, 0, 1)


def line(code: str, out: Buffer, *inputs: Buffer, scan: int | None = 0) -> Line:
    """Number by number, over buffers of one size."""
    refs = [Ref(one, 0, WHOLE) for one in (out, *inputs)]
    return Line("ROWWISE", code, (1, 1, 1, out.size), refs[0], tuple(refs[1:]), by_number=True, scan=scan)


def values(size: int = HEADS * SIZE) -> Buffer:
    return Buffer(size, Space.VALUES)


def state() -> Buffer:
    return Buffer(HEADS * SIZE, Space.STATE)


def decay(kept: Buffer, more: Sequence[Line] = ()) -> list[Line]:
    """The state's new numbers, with other lines before they are kept."""
    new = values()
    return [line("MUL", new, kept, values()), *more, line("COPY", kept, new)]


def scan_of(lines: list[Line]) -> Line:
    (scan,) = (one for one in lines if one.does == "SCAN")
    return scan


def test_a_scans_lines_stand_together_behind_what_they_read() -> None:
    kept, given, product = state(), values(), values()
    between = [line("EXP", given, values(), scan=None), Line("READY", inputs=(Ref(given, 0, WHOLE),))]
    between.append(Line("PRODUCT", out=Ref(product, 0, WHOLE)))
    reads = line("ADD", values(), kept, given)
    lines = arrange([*decay(kept, between), reads])
    at = lines.index(scan_of(lines))
    assert [one.scan for one in lines] == [None] * at + [None, 0, 0, 0]
    assert [one.code or one.does for one in lines] == ["EXP", "READY", "PRODUCT", "SCAN", "MUL", "COPY", "ADD"]


def test_a_product_between_a_state_and_its_new_value_is_refused() -> None:
    kept, new, product = state(), values(), values()
    ready, multiply = Line("READY", inputs=(Ref(new, 0, WHOLE),)), Line("PRODUCT", out=Ref(product, 0, WHOLE))
    with pytest.raises(LoadError, match="depends on itself"):
        arrange([line("EXP", new, kept), ready, multiply, line("COPY", kept, product)])


def test_new_numbers_are_written_where_they_are_kept() -> None:
    kept = state()
    lines = write_at_once(arrange(decay(kept)))
    assert [one.code or one.does for one in lines] == ["SCAN", "MUL"]
    read = lines[1].inputs[0]
    assert (lines[1].out and lines[1].out.buffer, read.buffer, read.space) == (kept, kept, Space.STATE_BEFORE)


def test_what_still_reads_the_old_numbers_keeps_the_copy() -> None:
    kept = state()
    late = line("ADD", values(), kept, values())
    lines = write_at_once(arrange(decay(kept, [late])))
    assert "COPY" in [one.code for one in lines]


def test_parts_are_heads_if_each_keeps_to_its_own() -> None:
    kept, given, new = state(), values(), values()
    lines = arrange([line("EXP", given, values(), scan=None), line("MUL", new, kept, given), line("COPY", kept, new)])
    divide(lines)
    assert scan_of(lines).sizes == (1, 1, 2, HEADS)
    assert [one.sizes for one in lines[2:]] == [(1, 1, 1, SIZE)] * 2
    # The scratch of one part alone is there; the state and what is read go on from part to part.
    assert [one.steps for one in lines[2:]] == [(0, SIZE, SIZE), (SIZE, 0)]


def test_a_line_that_mixes_heads_keeps_them_together() -> None:
    kept = state()
    swapped = Ref(kept, 0, (0, 0, 1, HEADS))
    new = values()
    mixing = Line(
        "ROWWISE", "NEG", (1, 1, HEADS, SIZE), Ref(new, 0, (0, 0, SIZE, 1)), (swapped,), by_number=True, scan=0
    )
    lines = arrange([mixing, line("COPY", kept, new)])
    divide(lines)
    assert scan_of(lines).sizes == (1, 1, 2, 1)
