"""Tool calls in streamed text: found whatever pieces it comes in; what is none stays text, to the letter."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.parsing.calls import ParserOf
from baton.parsing.deltas import CallArguments, CallStart, Delta, Message, Text, merged, message_of
from baton.parsing.json_calls import Bare, Tagged

TOOLS: dict[str, dict[str, object]] = {"f": {}, "g_2": {}}
Parsed = tuple[str, list[tuple[str, object]]]


def call(name: str = "f", arguments: object = None, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: {} if arguments is None else arguments})


def tagged(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in calls)


def said(style: ParserOf, pieces: list[str], **more: Any) -> Message:
    parser, deltas = style(TOOLS, **more), list[Delta]()
    for piece in pieces:
        deltas += parser.push(piece)
    deltas += parser.finish()
    assert [one.number for one in deltas if isinstance(one, CallStart)] == list(range(parser.calls))
    assert all(one.text for one in deltas if not isinstance(one, CallStart)), "no empty deltas"
    return message_of(deltas)


def parsed(style: ParserOf, pieces: list[str]) -> Parsed:
    text, _, calls = said(style, pieces)
    assert len({one.id for one in calls}) == len(calls) and all(one.id.startswith("call_") for one in calls)
    return text, [(one.name, json.loads(one.arguments)) for one in calls]


TRICKY = {"a": '</tool_call> " \\ {', "b": [1, {"c": None}], "é": "🎉"}

ODD = ('{"name": ["f"], "arguments": {}}', '{"arguments": {}, "name": "h"}', "[]", "3", "null", '{"name": 3}', "{,}")

HERMES_CASES: list[tuple[str, Parsed]] = [
    ("", ("", [])),
    ("hello", ("hello", [])),
    ("  hello \n ", ("  hello \n ", [])),
    (tagged(call()), ("", [("f", {})])),
    ("\n" + tagged(call("g_2", TRICKY)) + "\n", ("", [("g_2", TRICKY)])),
    (tagged(call("f", TRICKY), call("g_2")), ("", [("f", TRICKY), ("g_2", {})])),
    ("Let me see.\n\n" + tagged(call()), ("Let me see.", [("f", {})])),
    (tagged(call()) + "\nDone.", ("\nDone.", [("f", {})])),
    ("<tool_call>" + call() + "</tool_call>", ("", [("f", {})])),
    ("a < b <tool", ("a < b <tool", [])),
    ("a <tool_call>\n{", ("a <tool_call>\n{", [])),
    (tagged("{bad}"), (tagged("{bad}"), [])),
    ("so \n" + tagged("{bad}") + " \n", ("so \n" + tagged("{bad}") + " \n", [])),
    (tagged("{bad}") + tagged(call()), (tagged("{bad}"), [("f", {})])),
    (tagged(call("unknown")), (tagged(call("unknown")), [])),
    (tagged(call("f", [1])), (tagged(call("f", [1])), [])),
    (tagged('{"name": "f"}'), (tagged('{"name": "f"}'), [])),
    (tagged("[" * 3000), (tagged("[" * 3000), [])),
    ("</tool_call>", ("</tool_call>", [])),
    (tagged('{"arguments": {"a": 1}, "name": "f"}'), ("", [("f", {"a": 1})])),
    (tagged('{"name": "f", "arguments": "{\\"a\\": 1}"}'), ("", [("f", {"a": 1})])),
    (tagged('{"name": "f", "arguments": {}, "more": [1, "}"]}'), ("", [("f", {})])),
    (tagged(call() + "}"), ("", [("f", {})])),
    (tagged(call() + "\n" + call("g_2")), ("", [("f", {}), ("g_2", {})])),
    (tagged(call() + " so"), ("so", [("f", {})])),
    *((tagged(odd), (tagged(odd), [])) for odd in ODD),
]

P = "parameters"
TAG = Bare.opening
LLAMA_CASES: list[tuple[str, Parsed]] = [
    ("", ("", [])),
    ("hello {", ("hello {", [])),
    ("\n\n hello", ("\n\n hello", [])),
    (call(key=P), ("", [("f", {})])),
    (" \n" + call("g_2", TRICKY, P), ("", [("g_2", TRICKY)])),
    (TAG + call("f", TRICKY, P), ("", [("f", TRICKY)])),
    (TAG + "\n" + call("f", TRICKY, P) + "\n", ("", [("f", TRICKY)])),
    (call(key=P) + "; " + call("g_2", key=P), ("", [("f", {}), ("g_2", {})])),
    (call(key=P) + " and so on", (" and so on", [("f", {})])),
    ('{"name": "f", "parameters": ', ('{"name": "f", "parameters": ', [])),
    ('{"type": "function", "name": "f", "parameters": {}}', ("", [("f", {})])),
    ('{"name": "f"} {', ('{"name": "f"} {', [])),
    (call("unknown", key=P), (call("unknown", key=P), [])),
    ("{bad} text", ("{bad} text", [])),
    (TAG + "print(1)", (TAG + "print(1)", [])),
    ("<|pyt", ("<|pyt", [])),
]
CASES = [(Tagged, *case) for case in HERMES_CASES] + [(Bare, *case) for case in LLAMA_CASES]


@pytest.mark.parametrize(("style", "text", "expected"), CASES)
def test_whole_letter_by_letter_and_cut_anywhere(style: ParserOf, text: str, expected: Parsed) -> None:
    assert parsed(style, [text]) == expected
    assert parsed(style, list(text)) == expected
    for at in range(0, len(text), 1 + len(text) // 400):
        assert parsed(style, [text[:at], text[at:]]) == expected, at
    dice = random.Random(1)
    for _ in range(20):
        cuts = sorted(dice.sample(range(len(text) + 1), min(3, len(text) + 1)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert parsed(style, pieces) == expected, cuts


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("</tool_call>"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), ANY_JSON, max_size=3)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    calls=st.lists(st.tuples(st.sampled_from(list(TOOLS)), ARGUMENTS), min_size=1, max_size=3), width=st.integers(1, 9)
)
def test_calls_come_back_as_they_were_made(calls: list[tuple[str, dict[str, object]]], width: int) -> None:
    for style, text in (
        (Tagged, tagged(*(call(*one) for one in calls))),
        (Bare, ";".join(call(*one, P) for one in calls)),
    ):
        pieces = [text[at : at + width] for at in range(0, len(text), width)]
        assert parsed(style, pieces) == ("", calls)


ENDLESS: list[tuple[ParserOf, list[str], list[str]]] = [
    (Tagged, ['<tool_call>{"'], ["</tool_call>"]),
    (Tagged, ['<tool_call>{"'], ['"', "</tool_cal", '"', '"']),
    (Tagged, [], ["<tool_call>"]),
    (Tagged, ["<tool_call>"], ["</tool_call"]),
    (Tagged, ["<tool_call>"], ["</tool_call>", "<tool_call>"]),
    (Tagged, ['<tool_call>{"name": "f", "arguments": {"a": "'], ["\\", "\\"]),
    (Tagged, [], [" ", "\n"]),
    (Tagged, [], ["<", "<tool_cal"]),
    (Bare, [], ["{", "{", "}"]),
    (Bare, ['{"'], ["}"]),
    (Bare, ['{"'], ["\\", '"', "{}"]),
    (Bare, ["<|python_tag|>"], [" "]),
    (Bare, [], [" ", "\n"]),
]


@pytest.mark.parametrize(("style", "first", "again"), ENDLESS)
def test_what_was_read_is_not_looked_at_again(style: ParserOf, first: list[str], again: list[str]) -> None:
    """Whatever a model says, no more is scanned with a piece than that piece and what might be part of a tag."""
    parser, deltas = style(TOOLS), list[Delta]()
    pieces = first + again * 1000
    for piece in pieces:
        deltas += parser.push(piece)
        assert len(parser.scanner.pending) < 32
    whole = message_of(deltas + parser.finish())
    assert whole.text + "".join(call.arguments for call in whole.calls) in "".join(pieces)


class Uncounted(list[str]):
    """Pieces that cannot be iterated over."""

    def __iter__(self) -> Any:
        raise AssertionError("all that is held back was looked at")


def test_how_much_is_held_back_is_known_without_looking_at_it() -> None:
    parser = Tagged(TOOLS)
    parser.push("a")
    for _ in range(9):
        parser.push("\n")
    parser._blanks._pieces = Uncounted(parser._blanks._pieces)
    assert parser.held == 9


def test_text_is_not_held_back_for_long() -> None:
    parser = Tagged(TOOLS)
    assert parser.push("one two <") == [Text("one two")]
    assert message_of(parser.push("b> three")).text == " <b> three"
    bare = Bare(TOOLS)
    assert bare.push("one ") == [Text("one")] and bare.push("{") == [Text(" {")]


def test_arguments_are_told_as_they_come() -> None:
    parser = Tagged(TOOLS)
    assert parser.push('<tool_call>{"name": "f", "arguments": ') == []
    start, first = merged(parser.push('{"a": "Ro'))
    assert isinstance(start, CallStart) and (start.number, start.name) == (0, "f")
    assert first == CallArguments(0, '{"a": "Ro')
    assert merged(parser.push('me"}}')) == [CallArguments(0, 'me"}')]
    assert parser.push("</tool_call>") == []


@pytest.mark.parametrize("style", [Tagged, Bare])
def test_a_call_that_is_cut_is_a_call_once_it_is_sure(style: ParserOf) -> None:
    key = "arguments" if style is Tagged else "parameters"
    opening = "<tool_call>" if style is Tagged else ""
    sure = opening + '{"name": "f", "' + key + '": {"a": "R'
    (cut,) = said(style, [sure]).calls
    assert (cut.name, cut.arguments) == ("f", '{"a": "R')
    assert said(style, [opening + '{"name": "f']) == (opening + '{"name": "f', "", [])


def test_a_forced_call_that_is_cut_early_is_no_text() -> None:
    cut = '<tool_call>{"name": "f'
    assert said(Tagged, [cut], forced=True) == ("", "", [])
    text, _, (call,) = said(Tagged, [cut], forced=True, only="f")
    assert (text, call.name, call.arguments) == ("", "f", "")
