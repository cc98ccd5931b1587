"""Reasoning in streamed text: split at every place at which a piece may end."""

from __future__ import annotations

import pytest

from baton.parsing.deltas import Delta, Message, Parser, Reasoning, Text, message_of
from baton.parsing.json_calls import Tagged
from baton.parsing.reasoning import KNOWN, ReasoningParser, Tags, inside, tags_of

THINK = KNOWN[0]


def said(pieces: list[str], *, begun: bool = False, rest: Parser | None = None, tags: Tags = THINK) -> Message:
    parser, deltas = ReasoningParser(tags, begun=begun, rest=rest), list[Delta]()
    for piece in pieces:
        deltas += parser.push(piece)
        assert len(parser._scanner.pending) < 32
    return message_of(deltas + parser.finish())


CASES = [
    ("", False, ("", "")),
    ("hello", False, ("hello", "")),
    (" \n hello ", False, (" \n hello ", "")),
    ("<think>\nhm, so\n</think>\n\nhello", False, ("hello", "hm, so")),
    ("\n<think>a</think>b", False, ("b", "a")),
    ("hm\n\n</think>\n\nhello\n", True, ("hello\n", "hm")),
    ("<think>\n\n</think>\n\nhello", False, ("hello", "")),
    ("<think>a</think><think>b</think>c", False, ("c", "ab")),
    ("<think>never ends ", False, ("", "never ends")),
    ("never ends", True, ("", "never ends")),
    ("<thin", False, ("<thin", "")),
    ("hm </thin", True, ("", "hm </thin")),
    ("The tag <think> opens it</think>.", False, ("The tag <think> opens it</think>.", "")),
    ("<think>< </ </th a<b </think>x < y", False, ("x < y", "< </ </th a<b")),
]


@pytest.mark.parametrize(("text", "begun", "expected"), CASES)
def test_whole_letter_by_letter_and_cut_anywhere(text: str, begun: bool, expected: tuple[str, str]) -> None:
    ways = [[text], list(text), *([text[:at], text[at:]] for at in range(len(text)))]
    for pieces in ways:
        assert said(pieces, begun=begun)[:2] == expected, pieces


@pytest.mark.parametrize("tags", KNOWN)
def test_every_known_pair_of_tags(tags: Tags) -> None:
    text = f"{tags.opening}hm{tags.closing}hello"
    assert said(list(text), tags=tags)[:2] == ("hello", "hm")
    assert tags_of(f"{{% if x %}}{tags.closing}{{% endif %}}", frozenset()) == tags


def test_how_much_is_held_back_is_known() -> None:
    parser = ReasoningParser(THINK, begun=True)
    parser.push("a")
    for _ in range(9):
        parser.push("\n")
    assert parser.held == 9 == parser._blanks.size
    assert message_of(parser.push("b</think>")).reasoning == "\n" * 9 + "b" and parser.held == 0


def test_reasoning_is_told_as_it_comes() -> None:
    parser = ReasoningParser(THINK, begun=False)
    assert parser.push("<think>\none ") == [Reasoning("one")] and parser.reasoning
    assert parser.push("two</") == [Reasoning(" two")]
    assert parser.push("think>\n") == [] and not parser.reasoning
    assert parser.push("\nhello") == [Text("hello")]


def test_calls_are_looked_for_behind_the_reasoning_alone() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    text, reasoning, calls = said(list(f"<think>I say {call}</think>Well. {call}"), rest=Tagged({"f": {}}))
    assert (text, reasoning, [one.name for one in calls]) == ("Well.", f"I say {call}", ["f"])


@pytest.mark.parametrize(
    ("end", "expected"),
    [("<|im_start|>assistant\n<think>\n", True), ("<think>\n\n</think>\n\n", False), ("assistant\n", False)],
)
def test_a_template_that_opens_the_reasoning(end: str, expected: bool) -> None:
    assert inside(THINK, end) is expected


def test_tags_come_from_the_tokenizers_own_files_first() -> None:
    declared = {"fields": {"thinking": {"open": "<a>", "close": "</a>"}, "content": {}}}
    assert tags_of("</think>", frozenset(), declared) == ("<a>", "</a>")
    assert tags_of("", frozenset({"<think>", "</think>"})) == THINK
    assert tags_of("{{ messages }}", frozenset({"</s>"}), {"fields": 3}) is None
