"""Tokens become text and ends are recognised; each listener hears all its news in one crossing."""

from __future__ import annotations

import pytest

from baton.core.events import TokenLogprobs, Update, Usage
from baton.core.query import Query, SamplingParams
from baton.core.text import TextStream
from baton.engine.output import OutputProcessor

USAGE = Usage(1, 1, 1, 0, 0.0, 0.0, 0.0, None, 0)
END = 2


class Letters:
    """Token 97 is "a", 98 is "b", ...; the decoder keeps back a letter until the next one when `late`."""

    def __init__(self, late: bool = False) -> None:
        self._late = late
        self._kept = ""

    def step(self, token_id: int) -> str:
        if token_id == 0:
            raise ValueError("no such letter")
        piece, self._kept = (self._kept, chr(token_id)) if self._late else (chr(token_id), "")
        return piece

    def flush(self) -> str:
        rest, self._kept = self._kept, ""
        return rest


def query(name: str = "a", limit: int = 10, **params: object) -> Query:
    sampling = SamplingParams(**{"max_tokens": None, **params})  # type: ignore[arg-type]
    return Query(id=name, prompt=(1,), params=sampling, seed=0, limit_tokens=limit, arrived=0.0)


class Subscriber:
    """One subscriber: what it got, delivery by delivery."""

    def __init__(self) -> None:
        self.heard: list[list[Update]] = []

    def __call__(self, updates: list[Update]) -> None:
        self.heard.append(updates)


def outputs_of(late: bool = False) -> OutputProcessor:
    return OutputProcessor(lambda query: TextStream(Letters(late), query.params.stop), {END})


def said(text: str, late: bool = False, **asked: object) -> tuple[str | None, Update, int]:
    """The finish reason, the one update at the end, and how many tokens came before it."""
    outputs, subscriber = outputs_of(late), Subscriber()
    outputs.open(query(**asked), subscriber)  # type: ignore[arg-type]
    reason, count = None, 0
    while reason is None and count < len(text):
        reason = outputs.append("a", ord(text[count]))
        count += 1
    outputs.close("a", reason or "none", None, USAGE)
    outputs.flush()
    return reason, subscriber.heard[0][0], count


def test_an_end_token_stops_and_is_no_text() -> None:
    reason, update, count = said("ab\x02cd")
    assert (reason, update.text, count) == ("stop", "ab", 3)
    assert update.token_ids == (97, 98, 2)


def test_an_end_token_is_a_token_like_others_where_ignored() -> None:
    reason, update, _ = said("ab\x02cd", ignore_eos=True, limit=5)
    assert (reason, update.text) == ("length", "ab\x02cd")


def test_a_stop_token_stops_also_where_the_end_is_ignored() -> None:
    reason, update, _ = said("abcd", ignore_eos=True, stop_token_ids=(99,))
    assert (reason, update.text) == ("stop", "ab")


def test_a_stop_string_stops_at_the_token_that_completes_it() -> None:
    reason, update, count = said("xxstopyy", stop=("stop",))
    assert (reason, update.text, count) == ("stop", "xx", 6)


def test_the_limit_ends_and_sends_what_was_held_back() -> None:
    reason, update, count = said("aastx", stop=("stop",), limit=4)
    assert (reason, update.text, count) == ("length", "aast", 4)


def test_a_stop_string_completed_by_the_last_token_is_a_stop() -> None:
    reason, update, _ = said("astop", stop=("stop",), limit=5)
    assert (reason, update.text) == ("stop", "a")


@pytest.mark.parametrize(("stop", "expected"), [((), ("length", "abc")), (("bc",), ("stop", "a"))])
def test_what_the_decoder_kept_comes_with_the_last_update(stop: tuple[str, ...], expected: tuple[str, str]) -> None:
    reason, update, _ = said("abc", late=True, limit=3, stop=stop)
    assert (reason, update.text) == expected


def test_what_the_decoder_kept_comes_before_an_end_token_too() -> None:
    reason, update, _ = said("ab\x02", late=True)
    assert (reason, update.text) == ("stop", "ab")


def test_each_listener_is_called_once_with_all_that_is_new_and_nothing_twice() -> None:
    outputs, one, other = outputs_of(), Subscriber(), Subscriber()
    outputs.open(query("a"), one)
    outputs.open(query("b"), one)
    outputs.open(query("c"), other)
    for name, token in (("a", 97), ("b", 98), ("a", 99)):
        outputs.append(name, token)
    outputs.flush()
    assert one.heard == [[Update("a", (97, 99), "ac"), Update("b", (98,), "b")]]
    assert other.heard == []
    outputs.flush()
    assert len(one.heard) == 1
    outputs.append("a", 100)
    outputs.close("a", "stop", None, USAGE)
    outputs.close("c", "error", "it broke", USAGE)
    outputs.flush()
    assert one.heard[1:] == [[Update("a", (100,), "d", "stop", None, USAGE)]]
    assert other.heard == [[Update("c", (), "", "error", "it broke", USAGE)]]


def test_logprobs_come_with_their_tokens_and_the_prompts_with_the_first() -> None:
    outputs, subscriber = outputs_of(), Subscriber()
    outputs.open(query(), subscriber)
    told = [TokenLogprobs(token, -1.0, 1) for token in range(97, 103)]
    outputs.append_prompt("a", told[:2])
    outputs.flush()
    assert subscriber.heard == [], "nothing is said before the first token"
    outputs.append_prompt("a", told[2:3])
    outputs.append("a", 100, told[3])
    outputs.flush()
    for one in told[4:]:
        outputs.append("a", one.token_id, one)
    outputs.close("a", "stop", None, USAGE)
    outputs.flush()
    (first,), (last,) = subscriber.heard
    assert (first.logprobs, first.prompt_logprobs) == ((told[3],), tuple(told[:3]))
    assert (last.logprobs, last.prompt_logprobs) == (tuple(told[4:]), ())


def test_a_query_that_ended_before_its_first_token_is_told_so() -> None:
    outputs, subscriber = outputs_of(), Subscriber()
    outputs.open(query(), subscriber)
    outputs.close("a", "cancelled", None, USAGE)
    outputs.flush()
    assert subscriber.heard == [[Update("a", (), "", "cancelled", None, USAGE)]]
