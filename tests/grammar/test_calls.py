"""Grammars of answers that call tools: what fits them may be generated, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from baton.core.constraint import CALLS, OutputFormat
from baton.core.errors import InvalidValue
from baton.grammar.matcher import Vocabulary, compiled
from bytewise import END, SIZE, TAGS, backend, tokens_of

WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"city": {"enum": ["Rome", "Paris"]}},
    },
}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'
NOW = '{"name": "clock", "arguments": {}}'


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def form(tags: str, style: str = "hermes", **more: Any) -> OutputFormat:
    opening, closing, arguments = {
        "hermes": ("<tool_call>", "</tool_call>", "arguments"),
        "llama": ("<|python_tag|>", "", "parameters"),
    }[style]
    ids = {} if tags == "letters" else {tag: backend(tags).token_to_id(tag) for tag in TAGS}
    usual = {"several": True, "forced": True, "tools": [WEATHER, CLOCK]}
    spec = {"opening": opening, "closing": closing, "arguments": arguments, "tokens": ids, **usual, **more}
    return OutputFormat(CALLS, json.dumps(spec), "tools")


def fits(asked: OutputFormat, text: str, tags: str) -> bool:
    return said_by(asked, tokens_of(text, tags), tags)


def said_by(asked: OutputFormat, tokens: list[int], tags: str) -> bool:
    matcher, said = compiled(asked, Vocabulary(backend(tags).to_str(), SIZE, [END])).start(), list[int]()
    for token in [*tokens, END]:
        mask = matcher.allowed(list(said))
        if not mask[token // 8] >> token % 8 & 1:
            return False
        said.append(token)
    return True


@pytest.mark.parametrize("tags", ["special", "added", "letters"])
@pytest.mark.parametrize(
    ("more", "good", "bad"),
    [
        (
            {},
            [hermes(ROME), hermes(NOW), hermes(ROME, NOW, ROME)],
            ["", "hi", hermes(ROME) + "!", "x" + hermes(ROME), hermes(ROME.replace("Rome", "Bonn")), hermes("{}")],
        ),
        ({"several": False}, [hermes(ROME)], [hermes(ROME, NOW)]),
        ({"tools": [CLOCK]}, [hermes(NOW)], [hermes(ROME)]),
        (
            {"forced": False},
            ["", "hi <tool", hermes(ROME), "Let me see.\n" + hermes(ROME, NOW), hermes(NOW) + " done"],
            [hermes(ROME.replace("Rome", "Bonn")), "x <tool_call> y", hermes(NOW)[:-3]],
        ),
        ({"forced": False, "several": False}, ["hi", "so: " + hermes(NOW)], [hermes(NOW, NOW), "x <tool_call>"]),
    ],
)
def test_calls_in_tags(tags: str, more: dict[str, Any], good: list[str], bad: list[str]) -> None:
    asked = form(tags, **more)
    assert [text for text in good if not fits(asked, text, tags)] == []
    assert [text for text in bad if fits(asked, text, tags)] == []


@pytest.mark.parametrize("tag", ["", "<|python_tag|>"])
def test_bare_calls(tag: str) -> None:
    call = tag + ROME.replace("arguments", "parameters")
    assert fits(form("special", "llama"), call, "special")
    free = form("special", "llama", forced=False)
    for text in (call, "", "hello {}", " x"):
        assert fits(free, text, "special"), text
    for text in (call.replace("Rome", "Bonn"), "{}", call + call):
        assert not fits(free, text, "special"), text
    assert not fits(form("special", "llama"), "hello", "special")


def test_a_tool_whose_schema_cannot_be_honoured_is_refused() -> None:
    wrong = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    with pytest.raises(InvalidValue, match="not") as refused:
        compiled(form("special", tools=[wrong]), Vocabulary(backend().to_str(), SIZE, [END]))
    assert refused.value.param == "tools"


@pytest.mark.parametrize("tags", ["special", "added"])
def test_a_tag_in_letters_is_no_way_around(tags: str) -> None:
    letters = tokens_of("so <tool_call> x", "letters")
    assert not said_by(form(tags, forced=False), letters, tags)
    assert said_by(form(tags, forced=False), letters[:10], tags)
