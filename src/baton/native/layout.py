"""Where a step's numbers lie: each buffer's place in the tokens' rows, which buffers share once they are not needed."""

from __future__ import annotations

import math

from baton.native.graph import Buffer, Graph, Line, Ref, Space, refuse
from baton.native.scan import arrange, divide, write_at_once


def lay_out(graph: Graph) -> None:
    """Gives each buffer its place in the tokens' rows. Buffers that are not needed at the same time share one."""
    if graph.states:
        graph.lines = write_at_once(arrange(graph.lines))
    _reuse_in_place(graph.lines)
    divide(graph.lines)
    for number, buffer in enumerate(graph.states.values()):
        buffer.offset = number
    lives = _lives(graph.lines)
    for given in (graph.token, graph.position):
        lives[given] = (-1, lives.get(given, (-1, -1))[1])
    graph.scratch_floats = _place([(buffer, *life) for buffer, life in lives.items() if buffer.space is Space.SCRATCH])
    for space in (Space.VALUES, Space.LATE):
        floats = _place([(buffer, *life) for buffer, life in lives.items() if buffer.space is space])
        # Rows that begin at multiples of a page would compete for the same few sets of the cache.
        floats = -(-floats // 16) * 16
        floats += 16 if floats % 1024 == 0 else 0
        if space is Space.VALUES:
            graph.row_floats = floats
        else:
            graph.late_floats = floats
    attends = [at for at, line in enumerate(graph.lines) if line.does == "ATTEND"]
    for buffer, (first, last) in lives.items():
        if buffer.space is Space.ATTENDED:
            graph.attended_floats = max(graph.attended_floats, buffer.size)
            if any(first < at < last for at in attends):
                raise refuse("what an attention answered is needed behind the next one")


def _reuse_in_place(lines: list[Line]) -> None:
    """Lets an element-wise operation overwrite an operand that is not needed any more."""
    last = {buffer: life[1] for buffer, life in _lives(lines).items()}
    now: dict[Buffer, Buffer] = {}
    written: set[Buffer] = set()
    for at, line in enumerate(lines):
        line.inputs = tuple(_moved(one, now) for one in line.inputs)
        if line.out is None or line.out.buffer is None:
            continue
        out = line.out.buffer
        # Another part of a scan may still read what this one has done with.
        spaces = (Space.VALUES, Space.LATE) if line.scan is None else (Space.SCRATCH,)
        if out not in written and line.by_number and line.out.whole:
            for one in line.inputs:
                buffer = one.buffer
                if (
                    buffer is not None
                    and last[buffer] == at
                    and (buffer.space is out.space or out.space is Space.LOGITS)
                    and buffer.space in spaces
                    and buffer.size == out.size
                    and one.whole
                    and one.strides == line.out.strides
                    and math.prod(line.sizes) == out.size
                ):
                    if out.space is Space.LOGITS:
                        buffer.space = Space.LOGITS
                    now[out] = buffer
                    last[buffer] = last[out]
                    break
        written.add(out)
        line.out = _moved(line.out, now)


def _moved(one: Ref, now: dict[Buffer, Buffer]) -> Ref:
    buffer = one.buffer
    while buffer in now:
        buffer = now[buffer]
    return one if buffer is one.buffer else Ref(buffer, one.offset, one.strides, one.constant)


def _lives(lines: list[Line]) -> dict[Buffer, tuple[int, int]]:
    """Returns the first and the last line that use each buffer.

    All picks happen at once. So do products and the preparation of what they read, each thread at its own pace, and the
    parts of a scan.
    """
    scans: dict[int | None, tuple[int, int]] = {}
    for at, line in enumerate(lines):
        if line.scan is not None:
            scans[line.scan] = (scans.get(line.scan, (at, at))[0], at)
    picks = [at for at, line in enumerate(lines) if line.does == "PICK"]
    lives: dict[Buffer, tuple[int, int]] = {}
    for at, line in enumerate(lines):
        first, end = (picks[0], picks[-1]) if line.does == "PICK" else (at, at)
        while line.does == "READY" and end + 1 < len(lines) and lines[end + 1].does == "PRODUCT":
            end += 1
        for one in (*line.inputs, *([line.out] if line.out else [])):
            if one.buffer is not None:
                here = (first, end) if one.buffer.space is Space.SCRATCH else scans.get(line.scan, (first, end))
                known = lives.get(one.buffer, here)
                lives[one.buffer] = (min(known[0], here[0]), max(known[1], here[1]))
    return lives


def _place(lives: list[tuple[Buffer, int, int]]) -> int:
    """First fit, in the order of first use. Returns how many floats are needed."""
    placed: list[tuple[Buffer, int, int]] = []
    total = 0
    for buffer, first, last in sorted(lives, key=lambda one: one[1]):
        placed = [one for one in placed if one[2] >= first]
        at = 0
        for other, _, _ in sorted(placed, key=lambda one: one[0].offset):
            if at + buffer.size <= other.offset:
                break
            at = max(at, -(-(other.offset + other.size) // 16) * 16)
        buffer.offset = at
        total = max(total, at + buffer.size)
        placed.append((buffer, first, last))
    return total
