"""Forced calls of every style: what its parser reads may be said, and what breaks a schema may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from baton.core.constraint import CALLS, OutputFormat
from baton.core.errors import InvalidValue, Unsupported
from baton.grammar.matcher import Vocabulary, compiled
from baton.parsing.deltas import message_of
from baton.parsing.styles import STYLES, Style
from bytewise import END, SIZE, backend, tokens_of

TOOLS: list[dict[str, Any]] = [
    {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "n": {"type": "integer"},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    },
    {"name": "g", "parameters": {"type": "object", "properties": {}}},
]
FORCIBLE = [style for style in STYLES.values() if style.forcible]
CALLS_OF: dict[str, tuple[str, str]] = {
    # A call of f with all its arguments, and one that breaks its schema.
    "hermes": (
        '<tool_call>\n{"name": "f", "arguments": {"city": "Rome", "n": 3, "unit": "C"}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"n": 3}}\n</tool_call>',
    ),
    "llama": ('{"name": "f", "parameters": {"city": "Rome", "n": 3, "unit": "C"}}', '{"name": "h", "parameters": {}}'),
    "qwen3_coder": (
        "<tool_call>\n<function=f>\n<parameter=city>\nRome\n</parameter>\n<parameter=n>\n3\n</parameter>\n"
        "<parameter=unit>\nC\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=city>\nRome\n</parameter>\n<parameter=unit>\nK\n</parameter>\n",
    ),
    "seed_oss": (
        "<seed:tool_call>\n<function=f>\n<parameter=city>Rome</parameter>\n<parameter=n>3</parameter>\n"
        "<parameter=unit>C</parameter>\n</function>\n</seed:tool_call>",
        "<seed:tool_call>\n<function=f>\n</function>",
    ),
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="f">\n<parameter name="city">Rome</parameter>\n'
        '<parameter name="n">3</parameter>\n<parameter name="unit">C</parameter>\n</invoke>\n</minimax:tool_call>',
        '<minimax:tool_call>\n<invoke name="h">',
    ),
    "glm45": (
        "<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n<arg_key>n</arg_key>\n"
        "<arg_value>3</arg_value>\n<arg_key>unit</arg_key>\n<arg_value>C</arg_value>\n</tool_call>",
        "<tool_call>f\n<arg_key>n</arg_key>",
    ),
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
        '{"city": "Rome", "n": 3, "unit": "C"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>h",
    ),
    "deepseek_v31": (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"city": "Rome", "n": 3, "unit": "C"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"city": 3',
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"city": "Rome", "n": 3, "unit": "C"}<|tool_call_end|><|tool_calls_section_end|>',
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f<",
    ),
    "mistral": ('[TOOL_CALLS][{"name": "f", "arguments": {"city": "Rome", "n": 3, "unit": "C"}}]', "[TOOL_CALLS][]"),
    "mistral_v11": ('[TOOL_CALLS]f[ARGS]{"city": "Rome", "n": 3, "unit": "C"}', '[TOOL_CALLS]f[ARGS]{"n"'),
    "granite": ('<|tool_call|>[{"name": "f", "arguments": {"city": "Rome", "n": 3, "unit": "C"}}]', "so"),
    "phi4_mini": (
        '<|tool_call|>[{"name": "f", "arguments": {"city": "Rome", "n": 3, "unit": "C"}}]<|/tool_call|>',
        '<|tool_call|>[{"name": "g", "arguments": {"a',
    ),
    "command_a": (
        '<|START_ACTION|>[{"tool_name": "f", "parameters": {"city": "Rome", "n": 3, "unit": "C"}}]<|END_ACTION|>',
        '<|START_ACTION|>[{"tool_name": "h',
    ),
    "harmony": (
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"city": "Rome", "n": 3, "unit": "C"}',
        "<|channel|>final",
    ),
}


def form(style: Style, tools: list[dict[str, Any]] = TOOLS, *, forced: bool = True) -> OutputFormat:
    spec = {
        "frame": style.frame,
        "opening": style.opening,
        "closing": style.closing,
        "arguments": style.arguments,
        "tokens": {},
        "several": True,
        "forced": forced,
        "tools": tools,
    }
    return OutputFormat(CALLS, json.dumps(spec), "tools")


def allowed(asked: OutputFormat, text: str) -> int:
    """How many bytes of the text may be said; one more if it may end there."""
    matcher, told = compiled(asked, Vocabulary(backend("letters").to_str(), SIZE, [END])).start(), list[int]()
    for token in [*tokens_of(text, "letters"), END]:
        mask = matcher.allowed(list(told))
        if not mask[token // 8] >> token % 8 & 1:
            break
        told.append(token)
    return len(told)


@pytest.mark.parametrize("style", FORCIBLE, ids=lambda style: style.name)
def test_what_the_grammar_allows_the_parser_reads(style: Style) -> None:
    right, wrong = CALLS_OF[style.name]
    assert allowed(form(style), right) == len(right.encode()) + 1
    assert allowed(form(style), wrong) < len(wrong.encode()) + 1
    parser = style.parser({tool["name"]: tool["parameters"] for tool in TOOLS}, forced=True)
    text, _, (call,) = message_of(parser.push(right) + parser.finish())
    assert (text, call.name) == ("", "f")
    assert json.loads(call.arguments) == {"city": "Rome", "n": 3, "unit": "C"}


def test_strings_without_quotes_cannot_have_every_schema() -> None:
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}}]
    with pytest.raises(InvalidValue, match="pattern"):
        compiled(form(STYLES["glm45"], tools), Vocabulary(backend("letters").to_str(), SIZE, [END]))


MARKUP = ["qwen3_coder", "seed_oss", "minimax_m2", "glm45"]


@pytest.mark.parametrize("style", MARKUP)
@pytest.mark.parametrize("key", ["a>b", "a<b", 'a"b', " a", "a\n", "{index}", "{key}", "", "a" * 300])
def test_names_that_would_be_read_back_as_others_are_refused(style: str, key: str) -> None:
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {key: {"type": "integer"}}}}]
    with pytest.raises(InvalidValue, match="the property name"):
        compiled(form(STYLES[style], tools), Vocabulary(backend("letters").to_str(), SIZE, [END]))


@pytest.mark.parametrize("style", MARKUP)
@pytest.mark.parametrize("text", ["\nC", "C\n", "C{closing}D"])
def test_texts_that_would_be_read_back_as_others_are_refused(style: str, text: str) -> None:
    closing = STYLES[style].frame["argument"][1].strip()  # type: ignore[index]
    listed = {"enum": ["C", text.replace("{closing}", closing)]}
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"a": listed}}}]
    with pytest.raises(InvalidValue, match="the text"):
        compiled(form(STYLES[style], tools), Vocabulary(backend("letters").to_str(), SIZE, [END]))


def test_a_promise_about_a_free_answer_needs_a_tag_that_is_a_token() -> None:
    with pytest.raises(Unsupported, match="strict"):
        compiled(form(STYLES["kimi_k2"], forced=False), Vocabulary(backend("letters").to_str(), SIZE, [END]))
