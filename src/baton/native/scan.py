"""A step's scans: lines that are carried out token after token, put together and divided into parts.

A part is what one thread does at a time: a head, or some channels. Parts have nothing to do with one another, so one
row's tokens keep all threads busy, and what a part needs for one token stays in the cache.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from baton.native.graph import Buffer, Line, Ref, Space, refuse

# A part has at least so many numbers of states, if the scan can be divided at all.
PART_FLOATS = 1024


def arrange(lines: Sequence[Line]) -> list[Line]:
    """Puts the lines of each scan behind a line SCAN, one behind the other. Their own numbers become scratch.

    Raises LoadError if other lines must come in between.
    """
    users: dict[Buffer, set[int | None]] = {}
    for line in lines:
        for one in _operands(line):
            if one.buffer is not None:
                users.setdefault(one.buffer, set()).add(line.scan)
    for buffer, scans in users.items():
        if buffer.space is Space.VALUES and len(scans) == 1 and None not in scans:
            buffer.space = Space.SCRATCH
    units = _units(lines)
    ordered: list[Line] = []
    for unit in _order(lines, units):
        if lines[unit[0]].scan is not None:
            ordered.append(Line("SCAN", sizes=(1, 1, len(unit), 1)))
        ordered += [lines[at] for at in unit]
    return ordered


def _operands(line: Line) -> Iterator[Ref]:
    yield from line.inputs
    if line.out is not None:
        yield line.out


def _units(lines: Sequence[Line]) -> list[list[int]]:
    """Lines that stay together, by number: a scan's, and products with the preparation of what they read."""
    units: list[list[int]] = []
    scans: dict[int, list[int]] = {}
    for at, line in enumerate(lines):
        if line.scan is not None and line.scan in scans:
            scans[line.scan].append(at)
        elif line.does == "PRODUCT":
            units[-1].append(at)
        else:
            units.append([at])
            if line.scan is not None:
                scans[line.scan] = units[-1]
    return units


def _order(lines: Sequence[Line], units: list[list[int]]) -> Iterator[list[int]]:
    """The units so that whoever reads a number comes behind whoever writes it, and else as they were."""
    unit_of = {at: number for number, unit in enumerate(units) for at in unit}
    behind: list[set[int]] = [set() for _ in units]
    for first, second in _conflicts(lines):
        if unit_of[first] != unit_of[second]:
            behind[unit_of[first]].add(unit_of[second])
    waits = [0] * len(units)
    for number in itertools.chain.from_iterable(behind):
        waits[number] += 1
    # A scan waits for whatever is not behind it, so that threads meet before it once.
    free = [(unit[-1], number) for number, unit in enumerate(units) if not waits[number]]
    heapq.heapify(free)
    done = 0
    while free:
        _, number = heapq.heappop(free)
        done += 1
        yield units[number]
        for other in behind[number]:
            waits[other] -= 1
            if not waits[other]:
                heapq.heappush(free, (units[other][-1], other))
    if done < len(units):
        raise refuse("a state that depends on itself through a product or attention")


def _conflicts(lines: Sequence[Line]) -> Iterator[tuple[int, int]]:
    """Pairs of lines that must keep their order: both use a place, and one of them writes it."""
    writer: dict[object, int] = {}
    readers: dict[object, list[int]] = {}
    for at, line in enumerate(lines):
        reads: list[object] = [one.buffer for one in line.inputs if one.buffer is not None]
        writes: list[object] = [line.out.buffer] if line.out is not None and line.out.buffer is not None else []
        # What one attention answered is gone with the next; a layer's new keys are read before the next layer's.
        reads += [
            Space.ATTENDED for one in line.inputs if one.buffer is not None and one.buffer.space is Space.ATTENDED
        ]
        if line.does in ("KEEP", "ATTEND"):
            writes.append(Space.ATTENDED)
        for place in reads:
            if place in writer:
                yield writer[place], at
            readers.setdefault(place, []).append(at)
        for place in writes:
            yield from ((one, at) for one in readers.pop(place, ()))
            if place in writer:
                yield writer[place], at
            writer[place] = at


def write_at_once(lines: list[Line]) -> list[Line]:
    """Has the line that makes a state's new numbers write them, in place of a copy behind it, where it may.

    What reads the state before then reads what the row's token before has written, wherever that is: at a call's first
    token no state must be copied.
    """
    copies = [line for line in lines if line.scan is not None and line.code == "COPY" and _is_state(line.out)]
    for copy in copies:
        scan = [line for line in lines if line.scan == copy.scan]
        made = _maker(copy, scan)
        if made is None or copy.out is None or copy.out.buffer is None:
            continue
        state, numbers = copy.out.buffer, copy.inputs[0].buffer
        for at, line in enumerate(scan):
            before = at <= scan.index(made)
            line.inputs = tuple(
                replace(one, buffer=state, before=before and one.buffer is state)
                if one.buffer is state or one.buffer is numbers
                else one
                for one in line.inputs
            )
        made.out = replace(made.out, buffer=state) if made.out is not None else None
        lines = [line for line in lines if line is not copy]
        header = next(line for line in lines if line.does == "SCAN" and lines[lines.index(line) + 1] is scan[0])
        header.sizes = (1, 1, header.sizes[2] - 1, 1)
    return lines


def _maker(copy: Line, scan: Sequence[Line]) -> Line | None:
    """The only line that writes what a line copies into a state, if it can write into the state itself."""
    source, target = copy.inputs[0], copy.out
    if target is None or target.buffer is None or not _scratch(source) or not _whole(copy, source, target):
        return None
    writers = [line for line in scan if line.out is not None and line.out.buffer is source.buffer]
    made = writers[0]
    behind = scan[scan.index(made) + 1 :]
    free = all(line is copy or all(one.buffer is not target.buffer for one in _operands(line)) for line in behind)
    here = [one for one in made.inputs if one.buffer is target.buffer]
    same = made.out is not None and all(one.strides == made.out.strides and one.whole for one in here)
    plain = made.by_number and made.out is not None and math.prod(made.sizes) == target.buffer.size and made.out.whole
    return made if len(writers) == 1 and free and same and plain else None


def _whole(copy: Line, source: Ref, target: Ref) -> bool:
    size = math.prod(copy.sizes)
    fits = source.buffer is not None and target.buffer is not None and source.buffer.size == target.buffer.size == size
    return fits and source.whole and target.whole and source.strides == target.strides


def _is_state(one: Ref | None) -> bool:
    return one is not None and one.buffer is not None and one.buffer.space is Space.STATE


def divide(lines: Sequence[Line]) -> None:
    """Divides each scan into parts that neither read nor write one another's numbers."""
    for at, line in enumerate(lines):
        if line.does == "SCAN":
            count = line.sizes[2]
            line.sizes = (1, 1, count, _divided(lines[at + 1 : at + 1 + count]))


def _divided(lines: Sequence[Line]) -> int:
    """Returns into how many parts the lines were divided."""
    written = {line.out.buffer for line in lines if line.out is not None}
    states = {one.buffer for line in lines for one in _operands(line) if one.buffer and one.buffer.space is Space.STATE}
    floats = sum(buffer.size for buffer in states)
    dims = [_divisible(line) for line in lines]
    common = math.gcd(*(1 if dim is None else line.sizes[dim] for line, dim in zip(lines, dims, strict=True)))
    # As many parts as are large enough.
    parts = 1
    for wanted in range(common, 1, -1):
        if common % wanted or floats // wanted < PART_FLOATS:
            continue
        if all(_apart(line, dim, wanted, written) for line, dim in zip(lines, dims, strict=True)):
            parts = wanted
            break
    for line, dim in zip(lines, dims, strict=True):
        sizes = list(line.sizes)
        if dim is not None:
            sizes[dim] //= parts
        operands = [one for one in (line.out, *line.inputs) if one is not None]
        line.sizes = tuple(sizes)
        line.steps = tuple(0 if dim is None or _scratch(one) else one.strides[dim] * sizes[dim] for one in operands)
    for buffer in written:
        if buffer is not None and buffer.space is Space.SCRATCH:
            buffer.size //= parts
    return parts


def _divisible(line: Line) -> int | None:
    """The outermost dimension of a line with several numbers; none where it is what the line reduces."""
    kept = 0 if line.by_number else 2 if line.code.endswith("_ACROSS") else 1
    return next((dim for dim, size in enumerate(line.sizes[: len(line.sizes) - kept]) if size > 1), None)


def _scratch(one: Ref) -> bool:
    return one.buffer is not None and one.buffer.space is Space.SCRATCH


def _apart(line: Line, dim: int | None, parts: int, written: Collection[Buffer | None]) -> bool:
    """Whether part p of this line touches nothing but the p-th part of each buffer that the scan writes."""
    sizes = [size // parts if at == dim else size for at, size in enumerate(line.sizes)]
    for one in _operands(line):
        if one.buffer is None or (one.buffer not in written and one.buffer.space is not Space.STATE):
            continue
        step, rest = divmod(one.buffer.size, parts)
        reach = one.offset + sum((size - 1) * stride for size, stride in zip(sizes, one.strides, strict=True))
        if rest or dim is None or one.strides[dim] * sizes[dim] != step or not 0 <= one.offset <= reach < step:
            return False
    return True
