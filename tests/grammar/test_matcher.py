"""What llguidance makes of forms, over a tokenizer of single bytes and a few tokens with names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from baton.constraint import GRAMMAR, JSON, REGEX, Form
from baton.errors import InvalidValue, QueryFailed, Unsupported
from baton.grammar.matcher import Vocabulary, compiled
from bytewise import END, SIZE, backend, bytes_of, tokens_of

VOCABULARY = Vocabulary(backend().to_str(), SIZE, [END])


def ids(mask: bytes) -> set[int]:
    return {at for at in range(len(mask) * 8) if mask[at // 8] >> at % 8 & 1}


def fits(form: Form, text: str) -> bool:
    """Whether an answer may be this text: each of its tokens may come, and then the end."""
    matcher, said = compiled(form, VOCABULARY).start(), []
    for token in [*tokens_of(text), END]:
        if token not in ids(matcher.allowed(list(said))):
            return False
        said.append(token)
    return True


def schema(value: Any) -> Form:
    return Form(JSON, json.dumps(value), "response_format")


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (
            schema(PERSON),
            ['{"name": "Ann", "age": 3}', '{"name":"é🎉","age":12}', '{\n  "name": "",\n  "age": 0\n}'],
            ['{"name": "Ann"}', '{"age": 3, "name": "Ann"}', '{"name": "Johnny", "age": 3}', "[]", "", '{"name": "A'],
        ),
        (
            schema({"type": "object", "properties": {"a": {"type": "integer"}}}),
            ["{}", '{"a": 1}'],
            ['{"a": 1, "b": 2}', '{"b": 2}'],
        ),
        (schema({"type": "object"}), ["{}", '{"a": [1, {"b": null}]}'], ["3", "[]", '{"a": }', "{} {}"]),
        (schema({"enum": ["a", 2]}), ['"a"', "2"], ["3", "a"]),
        (schema({"$ref": "#/$defs/x", "$defs": {"x": {"const": True}}}), ["true"], ["false"]),
        (Form(REGEX, "[ab]+c?", "p"), ["a", "bac"], ["", "c", "acc"]),
        (Form(GRAMMAR, 'start: "yes" | "no"', "p"), ["yes", "no"], ["yesno", "y"]),
    ],
)
def test_what_fits_may_be_said_and_nothing_else(form: Form, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not fits(form, text)] == []
    assert [text for text in bad if fits(form, text)] == []


def test_blanks_end() -> None:
    """Between two parts one blank, or a new line with some indentation; a model cannot go on with blanks for ever."""
    form = schema({"type": "object"})
    assert not fits(form, "{  }") and not fits(form, "{\n\n}") and not fits(form, "{\n" + " " * 41 + "}")
    assert fits(form, "{ }") and fits(form, "{\n" + " " * 40 + "}")


def test_a_matcher_made_anew_goes_on_where_another_was() -> None:
    grammar, text = compiled(schema(PERSON), VOCABULARY), tokens_of('{"name": "Ann", "age": 3}')
    first = grammar.start()
    for at in range(len(text) + 1):
        assert grammar.start().allowed(text[:at]) == first.allowed(text[:at])
    assert first.allowed(text) == first.allowed(text), "asked again it says the same"


def test_an_answer_that_breaks_its_form_is_noticed() -> None:
    with pytest.raises(QueryFailed, match="form"):
        compiled(schema(PERSON), VOCABULARY).start().allowed(tokens_of("x"))


def test_ids_that_stand_for_nothing_and_ends_are_never_allowed_inside() -> None:
    """The vocabulary has more ids than the tokenizer has tokens; and special tokens are no text."""
    free = compiled(Form(REGEX, "(.|\n)*x", "p"), VOCABULARY).start()
    inside = ids(free.allowed([]))
    named = set(range(backend().get_vocab_size(), SIZE)) | {END} | set(range(3))
    assert not inside & named
    assert END in ids(free.allowed(tokens_of("x")))


def test_all_ends_are_ends() -> None:
    both = Vocabulary(backend().to_str(), SIZE, [END, 1])
    assert {END, 1} <= ids(compiled(schema({"const": 1}), both).start().allowed(tokens_of("1")))


REFUSED: Iterable[tuple[Form, str]] = [
    (schema({"type": "string", "minLenght": 3}), "minLenght"),
    (schema({"type": "object", "x-guidance": {"lenient": True}}), "x-guidance"),
    (schema({"items": {"not": {"type": "string"}}}), "not"),
    (schema({"type": "string", "contentEncoding": "base64"}), "contentEncoding"),
    (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (schema({"type": "string", "format": "phone"}), "phone"),
    (schema({"type": "string", "pattern": "a(?=b)"}), "look"),
    (schema({"$ref": "https://example.org/schema"}), "example.org"),
    (schema({"$ref": "file:///etc/passwd"}), "passwd"),
    (schema({"$ref": "#/$defs/none"}), "none"),
    (schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "cannot be honoured"),
    (schema({"type": "object", "minProperties": 2}), "minProperties"),
    (schema({"allOf": [{"type": "string"}, {"type": "integer"}]}), "ncompatible"),
    (schema({"type": "king"}), "king"),
    (schema({"properties": {"a": 5}}), "5"),
    (schema({"enum": []}), "empty"),
    (Form(REGEX, "a(", "p"), "regex"),
    (Form(REGEX, "a(?=b)", "p"), "look"),
    (Form(GRAMMAR, "start: nothing", "p"), "nothing"),
    (Form(GRAMMAR, "start: a\na[temperature=0.5]: /x+/", "p"), "temperature in a grammar"),
    (Form(GRAMMAR, 'start: a\na[capture, stop="y"]: /x+/', "p"), "stop in a grammar"),
    (Form(GRAMMAR, "start: start", "p"), "cannot be honoured"),
]


@pytest.mark.parametrize(("form", "why"), REFUSED, ids=lambda value: getattr(value, "text", value))
def test_what_cannot_be_honoured_is_refused_by_name(form: Form, why: str) -> None:
    with pytest.raises(InvalidValue, match=why) as refused:
        compiled(form, VOCABULARY)
    assert refused.value.param == form.param
    assert len(refused.value.message) < 400


def test_remarks_are_no_promises() -> None:
    form = schema({"title": "T", "description": "d", "default": 1, "examples": [2], "x-order": 3, "type": "integer"})
    assert fits(form, "7")


def test_models_without_a_tokenizer_that_is_understood_say_so() -> None:
    with pytest.raises(Unsupported, match="fast"):
        Vocabulary(None, SIZE, [END])
    with pytest.raises(Unsupported, match="ends"):
        Vocabulary(backend().to_str(), SIZE, [])
    with pytest.raises(Unsupported, match="tokenizer"):
        Vocabulary("{}", SIZE, [END])


def test_the_tokens_of_these_tests_are_bytes() -> None:
    def both() -> Iterator[str]:
        yield from ("é🎉", "a b\n")

    assert all(bytes_of(tokens_of(text)) == text.encode() for text in both())
