"""What llguidance makes of forms, over a tokenizer of single bytes and a few tokens with names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer

from baton import builtin
from baton.core.constraint import GRAMMAR, JSON, REGEX, OutputFormat
from baton.core.errors import Infeasible, InvalidValue, QueryFailed, Unsupported
from baton.grammar.matcher import Grammar, Vocabulary, compiled
from bytewise import END, SIZE, backend, bytes_of, tokens_of

VOCABULARY = Vocabulary(backend().to_str(), SIZE, [END])


def ids(mask: bytes) -> set[int]:
    return {at for at in range(len(mask) * 8) if mask[at // 8] >> at % 8 & 1}


def fits(form: OutputFormat, text: str) -> bool:
    """Whether an answer may be this text: each of its tokens may come, and then the end."""
    matcher, said = compiled(form, VOCABULARY).start(), list[int]()
    for token in [*tokens_of(text), END]:
        if token not in ids(matcher.allowed(list(said))):
            return False
        said.append(token)
    return True


def schema(value: Any) -> OutputFormat:
    return OutputFormat(JSON, json.dumps(value), "response_format")


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
        (OutputFormat(REGEX, "[ab]+c?", "p"), ["a", "bac"], ["", "c", "acc"]),
        (OutputFormat(GRAMMAR, 'start: "yes" | "no"', "p"), ["yes", "no"], ["yesno", "y"]),
    ],
)
def test_what_fits_may_be_said_and_nothing_else(form: OutputFormat, good: list[str], bad: list[str]) -> None:
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
    free = compiled(OutputFormat(REGEX, "(.|\n)*x", "p"), VOCABULARY).start()
    inside = ids(free.allowed([]))
    named = set(range(backend().get_vocab_size(), SIZE)) | {END} | set(range(3))
    assert not inside & named
    assert END in ids(free.allowed(tokens_of("x")))


def test_all_ends_are_ends() -> None:
    both = Vocabulary(backend().to_str(), SIZE, [END, 1])
    assert {END, 1} <= ids(compiled(schema({"const": 1}), both).start().allowed(tokens_of("1")))


REFUSED: Iterable[tuple[OutputFormat, str]] = [
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
    (OutputFormat(REGEX, "a(", "p"), "regex"),
    (OutputFormat(REGEX, "a(?=b)", "p"), "look"),
    (OutputFormat(GRAMMAR, "start: nothing", "p"), "nothing"),
    (OutputFormat(GRAMMAR, "start: a\na[temperature=0.5]: /x+/", "p"), "temperature in a grammar"),
    (OutputFormat(GRAMMAR, 'start: a\na[capture, stop="y"]: /x+/', "p"), "stop in a grammar"),
    (OutputFormat(GRAMMAR, "start: start", "p"), "cannot be honoured"),
]


BIG = 1234567890123456789
SEVERAL_DIGITS: list[Any] = [2**53, -(2**53) - 1, BIG, 2**63, 2**64, -(2**63) - 1, 10**20, 1e20, 1.5e308, 10**400]
SEVERAL_DIGITS += [123456789.12345679, 0.30000000000000004, 1e-30, float("inf"), float("nan")]
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxItems")


@pytest.mark.parametrize("number", SEVERAL_DIGITS, ids=lambda number: f"{number!r:.30}")
def test_numbers_that_would_be_rounded_are_refused_wherever_they_stand(number: Any) -> None:
    for one in ({"const": number}, {"enum": [1, number]}, {"const": {"a": [number]}}, *({n: number} for n in NUMBERS)):
        (name,) = one
        for whole in (
            one,
            {"type": "object", "properties": {"a": one}},
            {"type": "array", "items": one},
            {"anyOf": [{"type": "string"}, one]},
            {"$ref": "#/$defs/x", "$defs": {"x": one}},
        ):
            with pytest.raises(InvalidValue, match=f"{name} .*too many digits"):
                compiled(schema(whole), VOCABULARY)


@pytest.mark.parametrize(
    ("schema_of", "good", "bad"),
    [
        ({"const": 2**53 - 1}, [str(2**53 - 1)], [str(2**53)]),
        ({"enum": [-(2**53) + 1, 0.1]}, [str(-(2**53) + 1), "0.1"], ["0.2"]),
        ({"const": 12345678.1234567}, ["12345678.1234567"], ["12345678.1234568"]),
        ({"type": "integer", "minimum": 2**53 - 3, "maximum": 2**53 - 1}, [str(2**53 - 2)], [str(2**53), "1"]),
        ({"type": "number", "exclusiveMinimum": 0.1, "maximum": 0.25}, ["0.25"], ["0.1", "0.26"]),
        ({"type": "number", "multipleOf": 0.01}, ["1.23"], ["1.234"]),
    ],
)
def test_other_numbers_are_honoured_to_the_digit(schema_of: Any, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not fits(schema(schema_of), text)] == []
    assert [text for text in bad if fits(schema(schema_of), text)] == []


def test_numbers_in_remarks_may_have_any_digits() -> None:
    remarks = {"default": 2**70, "examples": [10**400, 1e308], "x-order": 2**64, "description": "d", "title": "t"}
    named = {"type": "object", "properties": {"default": {"type": "integer", **remarks}}, "required": ["default"]}
    assert fits(schema({**named, **remarks}), '{"default": 7}') and not fits(schema({**named, **remarks}), "{}")
    assert fits(schema({"anyOf": [{"const": True, **remarks}], **remarks}), "true")


DEEP = "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1} | r{i + 1} "b" | r{i + 1}' for i in range(2000)) + '\nr2000: "x"'


@pytest.mark.parametrize(
    ("form", "why"),
    [
        (OutputFormat(GRAMMAR, DEEP, "p"), "Current row has"),
        (schema({"type": "string", "pattern": "(.{1,1000}){1,1000}"}), "too many expressions"),
    ],
)
def test_a_form_that_can_be_compiled_and_not_followed_is_refused(form: OutputFormat, why: str) -> None:
    words = Tokenizer.from_file(str(builtin.path() / "tokenizer.json"))
    with pytest.raises(InvalidValue, match=why):
        compiled(form, Vocabulary(words.to_str(), words.get_vocab_size(), [words.token_to_id("<|end|>") or 0]))


class Panic(BaseException):
    """As Rust's panics come to Python."""


class Raising:
    """A matcher of llguidance's that raises in one of its verbs, or says that it is in error after it."""

    def __init__(self, verb: str, error: BaseException | None) -> None:
        self._verb, self._error, self._failed = verb, error, False

    def _do(self, verb: str) -> None:
        self._failed = self._failed or verb == self._verb
        if verb == self._verb and self._error is not None:
            raise self._error

    def deep_copy(self) -> Raising:
        self._do("deep_copy")
        return self

    def consume_tokens(self, tokens: list[int]) -> bool:
        self._do("consume_tokens")
        return not self._failed

    def compute_bitmask(self) -> bytes:
        self._do("compute_bitmask")
        return b"\xff"

    def is_error(self) -> bool:
        return self._failed

    def get_error(self) -> str:
        return "too many expressions constructed" if self._failed else ""


@pytest.mark.parametrize("error", [None, ValueError("no"), Panic("index out of bounds")], ids=repr)
@pytest.mark.parametrize("verb", ["deep_copy", "consume_tokens", "compute_bitmask"])
def test_whatever_llguidance_raises_while_it_is_followed_is_the_forms_trouble(
    verb: str, error: BaseException | None
) -> None:
    with pytest.raises(Infeasible, match="form cannot be followed") as caught:
        Grammar(Raising(verb, error)).start().allowed([5])
    assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("x"), Panic("index out of bounds")], ids=repr)
def test_whatever_llguidance_raises_while_it_compiles_is_the_forms_trouble(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    for broken in ("LLMatcher.grammar_from_json_schema", "LLMatcher.grammar_from_regex", "LLMatcher"):
        monkeypatch.setattr(f"baton.grammar.matcher.llguidance.{broken}", raises)
        for form in (schema({"type": "integer"}), OutputFormat(REGEX, "a", "p")):
            if ("regex" in broken and form.kind != REGEX) or ("json" in broken and form.kind != JSON):
                continue
            with pytest.raises(InvalidValue, match="cannot be honoured") as caught:
                compiled(form, VOCABULARY)
            assert caught.value.param == form.param
        monkeypatch.undo()


@pytest.mark.parametrize(("form", "why"), REFUSED, ids=lambda value: getattr(value, "text", value))
def test_what_cannot_be_honoured_is_refused_by_name(form: OutputFormat, why: str) -> None:
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
