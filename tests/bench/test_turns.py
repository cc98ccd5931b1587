"""Two processes that take turns: which is next, what happens at a run's end, and a wrong partner."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from baton.bench.interleave import Interleaved, OtherIsGone, OwnTime, handshake
from baton.core.errors import SettingError
from baton.testing.clock import ManualClock

Both = tuple[Interleaved, Interleaved]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def both(port: int) -> Iterator[Both]:
    with ThreadPoolExecutor() as pool:
        coming = [pool.submit(handshake, port, {"work": 1}, patience_seconds=20) for _ in range(2)]
        ends = tuple(one.result() for one in coming)
    yield ends[0], ends[1]
    for one in ends:
        one.close()


def played(both: Both, lengths: tuple[int, int]) -> tuple[str, str]:
    """What each wrote on one sheet of paper, each turn of a run of so many turns; and the run's name."""
    paper: list[str] = []

    def play(one: Interleaved, mark: str, turns: int) -> str:
        name = one.begin()
        for _ in range(turns):
            one.take()
            paper.append(mark)
            one.give()
        one.end()
        return name

    with ThreadPoolExecutor() as pool:
        some = [pool.submit(play, one, mark, n) for one, mark, n in zip(both, "ab", lengths, strict=True)]
        names = {one.result() for one in some}
    assert len(names) == 1
    return "".join(paper), names.pop()


def test_turns_alternate_and_who_began_last_time_is_second_now(both: Both) -> None:
    one, first = played(both, (3, 3))
    two, second = played(both, (3, 3))
    assert {one, two} == {"ababab", "bababa"} and first != second


def test_whoever_has_more_to_do_goes_on_alone(both: Both) -> None:
    for lengths in ((2, 5), (5, 2), (0, 3), (1, 1)):
        paper, _ = played(both, lengths)
        assert (paper.count("a"), paper.count("b")) == lengths
        shared = 2 * min(lengths)
        assert paper[:shared] in ("ab" * min(lengths), "ba" * min(lengths))


def test_other_work_is_refused_on_both_sides(port: int) -> None:
    def come(work: int) -> Any:
        try:
            handshake(port, {"work": work}, patience_seconds=20)
        except SettingError as error:
            return error.message

    with ThreadPoolExecutor() as pool:
        said = [one.result() for one in [pool.submit(come, 1), pool.submit(come, 2)]]
    assert sorted(said) == ["the other bench's work is 1, not 2", "the other bench's work is 2, not 1"]


def test_who_is_gone_is_not_waited_for(both: Both) -> None:
    both[0].close()
    with pytest.raises(OtherIsGone):
        both[1].begin()


def test_nobody_comes(port: int) -> None:
    with pytest.raises(OtherIsGone, match=str(port)):
        handshake(port, {}, patience_seconds=0.01)


def test_what_comes_is_no_bench(port: int) -> None:
    def visit() -> None:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as pipe:
                    pipe.sendall(b"GET / HTTP/1.1\n")
                    pipe.recv(1)
                return
            except ConnectionRefusedError:
                pass

    with ThreadPoolExecutor() as pool:
        visitor = pool.submit(visit)
        with pytest.raises(OtherIsGone, match="no bench"):
            handshake(port, {}, patience_seconds=20)
        visitor.result()


def test_own_time_stands_still_while_the_other_computes() -> None:
    clock = ManualClock(5.0)
    own = OwnTime(clock)
    for mine, other in ((1.0, 10.0), (2.0, 20.0)):
        own.start()
        clock.advance(mine)
        own.stop()
        clock.advance(other)
    assert own() == 3.0
    own.start()
    clock.advance(0.5)
    assert own() == 3.5
