"""Tool calls in streamed text: found whatever pieces it comes in; what is none stays text, to the letter."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.server.tool_calls import HERMES, LLAMA, Style, parser_of

TOOLS = ("f", "g_2")
Parsed = tuple[str, list[tuple[str, object]]]


def call(name: str = "f", arguments: object = None, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: {} if arguments is None else arguments})


def tagged(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in calls)


def parsed(style: Style, pieces: list[str]) -> Parsed:
    parser, text, calls = parser_of(style, TOOLS), "", []
    for piece in pieces:
        said = parser.push(piece)
        text += said.text
        calls += said.calls
    rest = parser.finish()
    assert not rest.calls
    assert [one.number for one in calls] == list(range(parser.calls))
    assert len({one.id for one in calls}) == len(calls) and all(one.id.startswith("call_") for one in calls)
    return text + rest.text, [(one.name, json.loads(one.arguments)) for one in calls]


TRICKY = {"a": '</tool_call> " \\ {', "b": [1, {"c": None}], "é": "🎉"}

ODD = (
    *('{"name": ["f"], "arguments": {}}', '{"name": "f", "arguments": {}, "more": 1}', "[]", "3", "null"),
    *('{"name": "f", "arguments": {"a": NaN}}', '{"name": "f", "arguments": {"a": "\\ud800"}}'),
)

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
    *((tagged(odd), (tagged(odd), [])) for odd in ODD),
]

P = "parameters"
TAG = LLAMA.opening
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
    ('{"name": "f", "parameters": {', ('{"name": "f", "parameters": {', [])),
    ('{"name": "f"} {', ('{"name": "f"} {', [])),
    (call("unknown", key=P), (call("unknown", key=P), [])),
    ("{bad} text", ("{bad} text", [])),
    (TAG + "print(1)", (TAG + "print(1)", [])),
    ("<|pyt", ("<|pyt", [])),
]
CASES = [(HERMES, *case) for case in HERMES_CASES] + [(LLAMA, *case) for case in LLAMA_CASES]


@pytest.mark.parametrize(("style", "text", "expected"), CASES)
def test_whole_letter_by_letter_and_cut_anywhere(style: Style, text: str, expected: Parsed) -> None:
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
@given(calls=st.lists(st.tuples(st.sampled_from(TOOLS), ARGUMENTS), min_size=1, max_size=3), width=st.integers(1, 9))
def test_calls_come_back_as_they_were_made(calls: list[tuple[str, dict[str, object]]], width: int) -> None:
    for style, text in (
        (HERMES, tagged(*(call(*one) for one in calls))),
        (LLAMA, ";".join(call(*one, P) for one in calls)),
    ):
        pieces = [text[at : at + width] for at in range(0, len(text), width)]
        assert parsed(style, pieces) == ("", calls)


ENDLESS: list[tuple[Style, list[str], list[str]]] = [
    (HERMES, ['<tool_call>{"'], ["</tool_call>"]),
    (HERMES, ['<tool_call>{"'], ['"', "</tool_cal", '"', '"']),
    (HERMES, [], ["<tool_call>"]),
    (HERMES, ["<tool_call>"], ["</tool_call"]),
    (HERMES, ["<tool_call>"], ["</tool_call>", "<tool_call>"]),
    (HERMES, ['<tool_call>{"name": "f", "arguments": {"a": "'], ["\\", "\\"]),
    (HERMES, [], [" ", "\n"]),
    (HERMES, [], ["<", "<tool_cal"]),
    (LLAMA, [], ["{", "{", "}"]),
    (LLAMA, ['{"'], ["}"]),
    (LLAMA, ['{"'], ["\\", '"', "{}"]),
    (LLAMA, ["<|python_tag|>"], [" "]),
    (LLAMA, [], [" ", "\n"]),
]


@pytest.mark.parametrize(("style", "first", "again"), ENDLESS)
def test_work_is_in_proportion_to_what_is_said(style: Style, first: list[str], again: list[str]) -> None:
    """Eight times as much takes eight times as long, however often a model says a tag; squares would take 64 times."""

    def seconds(times: int) -> float:
        pieces = first + again * times
        parser = parser_of(style, TOOLS)
        began = time.process_time()
        said = "".join(parser.push(piece).text for piece in pieces) + parser.finish().text
        took = time.process_time() - began
        assert said == "".join(pieces)
        return took

    few = min(seconds(1000) for _ in range(3))
    assert min(seconds(8000) for _ in range(2)) < 30 * few


def test_text_is_not_held_back_for_long() -> None:
    parser = parser_of(HERMES, TOOLS)
    assert parser.push("one two <").text == "one two"
    assert parser.push("b> three").text == " <b> three"
    bare = parser_of(LLAMA, TOOLS)
    assert bare.push("one ").text == "one " and bare.push("{").text == "{"


def test_a_call_is_told_when_it_is_complete() -> None:
    parser = parser_of(HERMES, TOOLS)
    assert parser.push("<tool_call>" + call("f") + "</tool_call").calls == ()
    assert parser.push(">").calls[0].name == "f"
    bare = parser_of(LLAMA, TOOLS)
    assert bare.push(call("f", {"a": "}"}, P)[:-1]).calls == ()
    assert bare.push("}").calls[0].arguments == '{"a": "}"}'
