"""Text is sent as soon as it is safe, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.text import TextStream


class Pieces:
    """A decoder whose token i is the i-th piece; what is left at the end is `rest`."""

    def __init__(self, pieces: Sequence[str], rest: str = "") -> None:
        self._pieces = pieces
        self._rest = rest

    def step(self, token_id: int) -> str:
        return self._pieces[token_id]

    def flush(self) -> str:
        return self._rest


def told(pieces: Sequence[str], stop: Sequence[str] = (), rest: str = "") -> tuple[list[str], bool]:
    """The results of each push and the finish, and whether a stop string was met."""
    stream = TextStream(Pieces(pieces, rest), tuple(stop))
    said = []
    for token in range(len(pieces)):
        said.append(stream.push(token))
        if stream.stopped:
            break
    said.append(stream.finish())
    return said, stream.stopped


def test_without_stop_strings_each_piece_is_sent_at_once() -> None:
    assert told(["He", "", "llo"], rest="\ufffd") == (["He", "", "llo", "\ufffd"], False)


def test_the_start_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    assert told(["ab", "c", "x"], ["bcd"]) == (["a", "", "bcx", ""], False)


def test_a_stop_string_across_pieces_is_dropped_with_all_behind_it() -> None:
    assert told(["one E", "N", "D two", "three"], ["END"]) == (["one ", "", "", ""], True)


def test_what_is_held_is_sent_when_nothing_follows() -> None:
    assert told(["ab"], ["bc"]) == (["a", "b"], False)


def test_a_stop_string_completed_by_the_flush_stops() -> None:
    assert told(["ab"], ["bc"], rest="cd") == (["a", ""], True)


def test_after_a_stop_nothing_more_is_said() -> None:
    stream = TextStream(Pieces(["xSTOPy", "more"], "rest"), ("STOP",))
    assert stream.push(0) == "x"
    assert stream.stopped
    assert stream.push(1) == ""
    assert stream.finish() == ""


def test_of_two_stop_strings_the_one_that_begins_first_counts() -> None:
    assert told(["a cb b c"], ["b c", "cb"])[0] == ["a ", ""]


def test_a_stop_string_that_repeats_itself_is_found_behind_a_false_start() -> None:
    assert told(["a", "a", "b", "x"], ["aab"]) == (["", "", "", ""], True)
    assert told(["a", "a", "a", "b"], ["aab"]) == (["", "", "a", "", ""], True)


@pytest.mark.parametrize("stop", ["aab", "abab", "aaa"])
def test_holding_back_never_holds_more_than_a_stop_string_could_need(stop: str) -> None:
    stream = TextStream(Pieces(["a", "b"]), (stop,))
    sent = said = ""
    for token in (0, 1, 1, 0, 0, 1, 1, 1):
        said += "ab"[token]
        sent += stream.push(token)
        if stream.stopped:
            return
        assert len(said) - len(sent) < len(stop)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.text(alphabet="ab\u00e9", max_size=4), max_size=8),
    st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=3), max_size=4),
    st.text(alphabet="ab", max_size=3),
)
def test_any_text_in_any_pieces_is_cut_at_the_first_stop_string(pieces: list[str], stop: list[str], rest: str) -> None:
    said, stopped = told(pieces, stop, rest)
    whole, expected, met = "", None, False
    for piece in [*pieces, rest]:
        whole += piece
        starts = [whole.index(string) for string in stop if string in whole]
        if starts:
            expected, met = whole[: min(starts)], True
            break
    assert "".join(said) == (whole if expected is None else expected)
    assert stopped == met


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.text(alphabet="ab", min_size=1, max_size=3), max_size=8), st.text(alphabet="ab", min_size=1, max_size=4)
)
def test_nothing_sent_ever_has_to_be_taken_back(pieces: list[str], stop: str) -> None:
    """Whatever was sent is a beginning of what remains when the stop string comes at any later point."""
    stream = TextStream(Pieces(pieces), (stop,))
    sent = whole = ""
    for token, piece in enumerate(pieces):
        sent += stream.push(token)
        whole += piece
        if stream.stopped:
            break
        for n in range(len(stop) + 1):
            finished = (whole + stop[n:]).split(stop)[0]
            if whole.endswith(stop[:n]):
                assert finished.startswith(sent)


def test_text_before_the_fewest_tokens_may_hold_a_stop_string() -> None:
    stream = TextStream(Pieces(["a", "b", "a", "b", "c"]), ("ab",))
    assert stream.push(0, may_stop=False) + stream.push(1, may_stop=False) == "ab"
    assert not stream.stopped
    assert stream.push(2) + stream.push(3) == ""
    assert stream.stopped


# Stop strings with names of tokens that have no text


END, TOOL = 7, 8
SILENT = {END: "<|end|>", TOOL: "<|end|>tool", 9: "<|other|>"}


class Named(Pieces):
    """Pieces, and tokens without text."""

    def step(self, token_id: int) -> str:
        return "" if token_id in SILENT else super().step(token_id)


def silent(tokens: Sequence[int], stop: Sequence[str], pieces: Sequence[str] = ("a", "b", "<|", "end|>", "x")) -> str:
    """The text of these tokens; "!" after it if a stop string was met."""
    stream, said = TextStream(Named(pieces), tuple(stop), SILENT), ""
    for token in tokens:
        said += stream.push(token)
        if stream.stopped:
            return said + "!"
    return said + stream.finish()


@pytest.mark.parametrize(
    ("tokens", "stop", "said"),
    [
        ([0, 1, END, 4], ["<|end|>"], "ab!"),
        ([0, 1, 2, 3, 4], ["<|end|>"], "ab!"),
        ([0, 1, END, 4], ["b<|end|>x"], "a!"),
        ([0, 1, END, 0], ["b<|end|>x"], "aba"),
        ([0, END, END, 4], ["<|end|><|end|>"], "a!"),
        ([0, END, 1, END, 4], ["<|end|><|end|>"], "abx"),
        ([0, TOOL, 1], ["<|end|>tool"], "a!"),
        ([0, TOOL, 1], ["<|end|>"], "ab"),
        ([0, 9, 1, END], ["<|end|>"], "ab!"),
        ([0, 9, 1, END], ["nothing"], "ab"),
        # What is not said is not searched for a part of it.
        ([0, END, 1], ["end"], "ab"),
        ([0, END, 1], ["end", "x<|end|>"], "ab"),
        ([4, END, 1], ["end", "x<|end|>"], "!"),
        ([0, END, 1], ["ab"], "!"),
    ],
)
def test_a_stop_string_is_met_by_tokens_without_text_of_its_names(
    tokens: list[int], stop: list[str], said: str
) -> None:
    assert silent(tokens, stop) == said


def test_before_the_fewest_tokens_they_do_not_stop_and_are_not_said() -> None:
    stream = TextStream(Named(["a"]), ("<|end|>",), SILENT)
    assert [stream.push(token, may_stop=False) for token in (0, END, 0)] == ["a", "", "a"]
    assert not stream.stopped
    assert stream.push(END) == "" and stream.stopped
