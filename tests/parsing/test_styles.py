"""Every style of tool calls: read the same whatever pieces it comes in, and as transformers reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from transformers.utils.chat_parsing import parse_response

from baton.parsing import python_calls
from baton.parsing.calls import CallParser
from baton.parsing.deltas import CallStart, Delta, message_of
from baton.parsing.markup_calls import coerced, types_of
from baton.parsing.styles import HERMES, LLAMA, STYLES, style_of

TOOLS: dict[str, Any] = {
    "f": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "n": {"type": "integer"},
            "ok": {"type": ["boolean", "null"]},
            "o": {"type": "object"},
        },
    },
    "g": {},
}
ROME = {"city": "Rome"}
MANY = {"city": 'Ro "me"\n', "n": 3, "ok": True, "o": {"a": [1, "b"]}}
Calls = list[tuple[str, object]]
BOTH: Calls = [("f", ROME), ("g", {})]

CASES: list[tuple[str, str, tuple[str, Calls]]] = [
    (
        "deepseek_v3",
        "So. <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
        '{"city": "Rome"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ("So.", BOTH),
    ),
    (
        "deepseek_v31",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ("", BOTH),
    ),
    (
        "deepseek_v31",
        "<｜tool▁call▁begin｜>h<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        ("<｜tool▁call▁begin｜>h<｜tool▁sep｜>{}<｜tool▁call▁end｜>", []),
    ),
    (
        "kimi_k2",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"city": "Rome"}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|>",
        ("", BOTH),
    ),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"city": "Rome"}}, {"name": "g", "arguments": {}}]',
        ("", BOTH),
    ),
    ("mistral_v11", 'So. [TOOL_CALLS]f[ARGS]{"city": "Rome"}[TOOL_CALLS]g[CALL_ID]a1[ARGS]{}', ("So.", BOTH)),
    (
        "qwen3_coder",
        'So.\n<tool_call>\n<function=f>\n<parameter=city>\nRo "me"\n\n</parameter>\n<parameter=n>\n3\n</parameter>\n'
        '<parameter=ok>\ntrue\n</parameter>\n<parameter=o>\n{"a": [1, "b"]}\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call>\n<function=g>\n</function>\n</tool_call>",
        ("So.", [("f", MANY), ("g", {})]),
    ),
    ("qwen3_coder", "<function=f>\n<parameter=city>\nRome\n</parameter>\n</function>", ("", BOTH[:1])),
    (
        "qwen3_coder",
        "<tool_call>\n<function=h>\n</function>\n</tool_call> so",
        ("<tool_call>\n<function=h>\n</function>\n</tool_call> so", []),
    ),
    (
        "seed_oss",
        "<seed:tool_call>\n<function=f>\n<parameter=city>Rome</parameter>\n</function>\n</seed:tool_call>",
        ("", BOTH[:1]),
    ),
    (
        "minimax_m2",
        '<minimax:tool_call>\n<invoke name="f">\n<parameter name="city">Rome</parameter>\n</invoke>\n'
        '<invoke name="g">\n</invoke>\n</minimax:tool_call>',
        ("", BOTH),
    ),
    (
        "glm45",
        "\n<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>",
        ("", BOTH),
    ),
    ("glm45", "<tool_call>f<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>", ("", BOTH[:1])),
    (
        "lfm2",
        "So <|tool_call_start|>[f(city='Ro \"me\"\\n', n=3, ok=True, o={\"a\": [1, 'b']}), g()]<|tool_call_end|> on",
        ("So on", [("f", MANY), ("g", {})]),
    ),
    ("olmo3", '<function_calls>\nf(city="Rome")\ng()\n</function_calls>', ("", BOTH)),
    (
        "gemma4",
        '<|tool_call>call:f{city:<|"|>Ro "me"\n<|"|>,n:3,ok:true,o:{a:[1,<|"|>b<|"|>]}}<tool_call|>'
        "<|tool_call>call:g{}<tool_call|>",
        ("", [("f", MANY), ("g", {})]),
    ),
    ("functiongemma", "<start_function_call>call:f{city:<escape>Rome<escape>}<end_function_call>", ("", BOTH[:1])),
    (
        "granite",
        '<|tool_call|>[{"name": "f", "arguments": {"city": "Rome"}}, {"name": "g", "arguments": {}}]',
        ("", BOTH),
    ),
    ("phi4_mini", '<|tool_call|>[{"name": "f", "arguments": {"city": "Rome"}}]<|/tool_call|>', ("", BOTH[:1])),
    ("phi4_mini", 'functools[{"name": "f", "arguments": {"city": "Rome"}}]', ("", BOTH[:1])),
    ("phi4_mini", "I import functools, then [1]", ("I import functools, then [1]", [])),
    (
        "command_a",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "f", "parameters": {"city": "Rome"}}\n]'
        "<|END_ACTION|>",
        ("", BOTH[:1]),
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f "
        '<|constrain|>json<|message|>{"city": "Rome"}<|call|>',
        ("", BOTH[:1]),
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>So.<|return|>",
        ("So.", []),
    ),
    ("harmony", "<|channel|>commentary<|message|>I look.<|end|>", ("I look.", [])),
    ("harmony", "plain", ("plain", [])),
]


def said(style: str, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    parser, deltas = STYLES[style].parser(TOOLS), list[Delta]()
    assert isinstance(parser, CallParser)
    for piece in pieces:
        deltas += parser.push(piece)
        assert len(parser.scanner.pending) < 64, "what was read is not looked at again"
    deltas += parser.finish()
    assert all(one.text for one in deltas if not isinstance(one, CallStart)), "no empty deltas"
    text, _, calls = message_of(deltas)
    return text, [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(("style", "text", "expected"), CASES)
def test_whole_letter_by_letter_and_cut_anywhere(style: str, text: str, expected: tuple[str, Calls]) -> None:
    whole = said(style, [text])
    assert (whole[0], [(name, json.loads(arguments)) for name, arguments in whole[1]]) == expected
    assert said(style, list(text)) == whole
    for at in range(len(text)):
        assert said(style, [text[:at], text[at:]]) == whole, at


@pytest.mark.parametrize(("style", "text", "expected"), CASES)
def test_a_cut_answer_has_what_came_and_no_more(style: str, text: str, expected: tuple[str, Calls]) -> None:
    whole = said(style, [text])[1]
    for at in range(len(text)):
        for (name, arguments), (whole_name, whole_arguments) in zip(said(style, [text[:at]])[1], whole, strict=False):
            assert name == whole_name and whole_arguments.startswith(arguments), text[:at]


def test_arguments_of_markup_stream_as_they_come() -> None:
    parser = STYLES["qwen3_coder"].parser(TOOLS)
    parser.push("<tool_call>\n<function=f>\n<parameter=city>\n")
    assert "".join(one.text for one in parser.push("Ro") if not isinstance(one, CallStart)) == "Ro"
    assert "".join(one.text for one in parser.push('m"e') if not isinstance(one, CallStart)) == 'm\\"e'


QWEN35 = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"content": "text"},
    },
}
GEMMA4 = {
    "start_anchor": "<|turn>model\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
            "close": "<tool_call|>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"content": "text"},
    },
}


@pytest.mark.parametrize(
    ("declared", "style", "text"),
    [
        (
            QWEN35,
            "qwen3_coder",
            "So.<tool_call>\n<function=f>\n<parameter=city>\nRome, é\n</parameter>\n<parameter=n>\n3\n</parameter>\n"
            "</function>\n</tool_call>",
        ),
        (GEMMA4, "gemma4", '<|tool_call>call:f{city:<|"|>Rome, {é}<|"|>,n:3,o:{a:[1,<|"|>b<|"|>]}}<tool_call|>'),
    ],
)
def test_calls_are_those_of_transformers(declared: dict[str, Any], style: str, text: str) -> None:
    """The response templates are those with which transformers serves these models."""
    known = style_of("", declared)
    assert known is not None and known.name == style
    tools: list[Any] = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in TOOLS.items()]
    stock = parse_response(text, declared, prefix="", tools=tools)
    mine_text, calls = said(style, [text])
    assert mine_text == stock.get("content", "")
    wanted = [(call["function"]["name"], call["function"]["arguments"]) for call in stock["tool_calls"]]
    assert [(name, json.loads(arguments)) for name, arguments in calls] == wanted


def test_a_style_is_known_by_the_template_or_not_at_all() -> None:
    assert style_of("… <tool_call> …") is HERMES
    assert style_of('{"name": function name, "parameters": dictionary}') is LLAMA
    assert style_of("… <my_call> …") is None
    assert style_of("<tool_call>", {"fields": {"tool_calls": {"open": "<my_call>"}}}) is None
    assert style_of("<tool_call>", {"fields": {"content": {}}}) is HERMES
    for style in STYLES.values():
        if style not in (LLAMA, HERMES) and style.name not in ("deepseek_v3", "mistral"):
            assert style_of(" ".join(style.tags) + " <function=x>" * (style.name == "qwen3_coder")) == style


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("3", ("integer",), 3),
        ("3.0", ("integer",), 3),
        ("3.5", ("integer",), "3.5"),
        ("1e999", ("number",), "1e999"),
        ("NaN", ("number",), "NaN"),
        ("true", ("boolean",), True),
        ("True", ("boolean",), True),
        ("null", ("string", "null"), None),
        ("3", ("string",), "3"),
        ('{"a": 1}', (), {"a": 1}),
        ("Rome", (), "Rome"),
        ("[" * 5000, ("array",), "[" * 5000),
        ("9" * 5000, ("integer",), "9" * 5000),
    ],
)
def test_texts_become_values_of_their_types(text: str, types: tuple[str, ...], value: object) -> None:
    assert coerced(text, types) == value


ODD_SCHEMAS: list[Any] = [
    {"type": 5},
    {"type": [{"x": 1}]},
    {"anyOf": 5},
    {"oneOf": True},
    {"anyOf": {"a": 1}},
    {"anyOf": [5]},
    {"enum": 5},
    5,
    None,
]


@pytest.mark.parametrize("schema", ODD_SCHEMAS, ids=str)
def test_schemas_that_nobody_checked_end_no_answer(schema: Any) -> None:
    parser = STYLES["qwen3_coder"].parser({"f": {"properties": {"a": schema}}})
    text = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
    (call,) = message_of(parser.push(text) + parser.finish()).calls
    assert json.loads(call.arguments) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-2.5e3", -2500.0),
        ("'it\\'s'", "it's"),
        ('r"\\d"', "\\d"),
        ("[1, 'a', None]", [1, "a", None]),
        ("(1)", 1),
        ("(1,)", [1]),
        ("(1, 2)", [1, 2]),
        ("[]", []),
        ("{'a': {'b': (True, false)}, 2: []}", {"a": {"b": [True, False]}, "2": []}),
        ("{}", {}),
        ("[1 2]", "[1 2]"),
        ("[1, ", "[1,"),
        ("1 + 1", "1 + 1"),
        ("f'{x}'", "f'{x}'"),
        ("Rome", "Rome"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ("-" * 9 + "1", "-" * 9 + "1"),
        ("not 1", "not 1"),
        ("+1", 1),
        ("01234", "01234"),
        ("-007", "-007"),
        ("00", 0),
        ("0.5", 0.5),
    ],
)
def test_literals_of_python_are_values_and_all_else_is_text(text: str, value: object) -> None:
    assert json.loads(python_calls._json(text)) == value


DEEP = """
import threading
from baton.parsing.styles import STYLES

def read(value):
    parser = STYLES["lfm2"].parser({"f": {}})
    assert parser.push("<|tool_call_start|>[f(a=" + value + ")]<|tool_call_end|>")

threading.stack_size(256 * 1024)
for value in ("-" * 200_000 + "1", "not " * 50_000 + "1", "[" * 50_000, "1" + "+1" * 50_000, "{1:" * 50_000):
    thread = threading.Thread(target=read, args=(value,))
    thread.start()
    thread.join()
"""


def test_what_is_nested_deeply_does_not_end_the_process() -> None:
    """On a thread with a small stack, as threads have it on other systems."""
    ran = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_types_are_found_in_unions() -> None:
    assert types_of({"anyOf": [{"type": "string"}, {"type": "null"}]}) == ("string", "null")
    assert types_of({"type": "integer", "nullable": True}) == ("integer", "null")
    assert types_of({"enum": ["a"]}) == ("string",) and types_of(True) == ()
