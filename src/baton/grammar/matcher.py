"""llguidance's grammars and matchers (Earley parser over a trie of all tokens), under baton's names."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from baton.core.constraint import CALLS, JSON, REGEX, OutputFormat
from baton.core.errors import Infeasible, InvalidValue, RequestError, Unsupported
from baton.grammar.calls import calls_grammar
from baton.grammar.closed import closed
from baton.grammar.schema import check_schema, without_remarks

try:
    import llguidance
except ImportError:  # no wheel for this platform
    llguidance = None  # type: ignore[assignment]

# Between two parts of a JSON text: nothing, a blank, or a new line with some indentation. Without a limit small models
# write blanks until they have no tokens left.
JSON_OPTIONS: Mapping[str, Any] = {"whitespace_pattern": r"(?: |\n[ \t]{0,40})", "lenient": False}
# In the head of a rule: another temperature, or text that is taken back. Neither is supported here.
_UNHONOURED = re.compile(r"^\s*\w+\[[^]\n]*\b(temperature|stop)\s*=", re.MULTILINE)
# How many tokens of a form are tried before it is accepted.
_TRIAL_TOKENS = 32
_MAX_LEXER_STATES = 50_000  # of 1 to 2 kB each, and every matcher has its own


class Vocabulary:
    """All tokens of a tokenizer, by their bytes.

    `backend`: a fast tokenizer as JSON; `size`: how many ids the model has; `end_ids`: those that end a text. Raises
    Unsupported if llguidance does not understand the tokenizer.
    """

    def __init__(self, backend: str | None, size: int, end_ids: Sequence[int]) -> None:
        ends = [end for end in end_ids if end < size]
        if backend is None or not ends:
            why = "has no fast tokenizer" if backend is None else "has no token that ends a text"
            raise Unsupported(f"this model {why}: its answers cannot be given a form")
        try:
            self.tokens = llguidance.LLTokenizer(backend, n_vocab=size, eos_token=ends)
        except Exception as error:
            why = _reason(str(error))
            raise Unsupported(f"answers cannot be given a form with this model's tokenizer: {why}") from error


def available() -> bool:
    return llguidance is not None


def compiled(form: OutputFormat, vocabulary: Vocabulary) -> Grammar:
    """Raises InvalidValue, with the form's field and the reason, if the form cannot be honoured."""

    def refuse(why: str) -> InvalidValue:
        return InvalidValue(f"this {form.kind} cannot be honoured: {_reason(why)}", param=form.param)

    with _trouble(refuse):
        matcher = llguidance.LLMatcher(
            vocabulary.tokens,
            _source(form),
            log_level=0,
            limits=llguidance.LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False),
        )
        if not matcher.is_error() and (warnings := matcher.get_grammar_warnings()):
            raise refuse(warnings[0])
        # The first mask shows a grammar that nothing fits. Its work is shared by all matchers.
        if not matcher.is_error():
            matcher.compute_bitmask()
        if why := matcher.get_error() or _trial(matcher.deep_copy()):
            raise refuse(why)
    return Grammar(matcher)


def _trial(matcher: Any) -> str:
    """Why a compiled grammar cannot be followed, from a trial of some tokens; "" if it can."""
    dice = random.Random(0)
    for _ in range(_TRIAL_TOKENS):
        bits = matcher.compute_bitmask()
        allowed = [at * 8 + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]
        if matcher.is_error() or not allowed or not matcher.consume_tokens([dice.choice(allowed)]):
            break
        if matcher.is_stopped():
            break
    return str(matcher.get_error())


@contextmanager
def _trouble(error_of: Callable[[str], Exception]) -> Iterator[None]:
    """Turns whatever llguidance raises into this error, also a panic of Rust, which is not an Exception."""
    try:
        yield
    except (RequestError, Infeasible, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise error_of(f"panic: {error}" if not isinstance(error, Exception) else str(error)) from error


class Grammar:
    """A `Constraint`; see `constraint.py`."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._lock = threading.Lock()

    def start(self) -> GrammarMatcher:
        with self._lock, _trouble(_unfollowable):
            return GrammarMatcher(self._matcher.deep_copy())


class GrammarMatcher:
    """A `Matcher`; see `constraint.py`."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._taken = 0

    def allowed(self, generated: Sequence[int]) -> bytes:
        new = list(generated[self._taken :])
        self._taken = len(generated)
        with _trouble(_unfollowable):
            if new:
                self._matcher.consume_tokens(new)
                self._check()
            mask = self._matcher.compute_bitmask()
            self._check()
        return bytes(mask)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _unfollowable(self._matcher.get_error())


def _unfollowable(why: str) -> Infeasible:
    return Infeasible(f"the answer's form cannot be followed: {_reason(why)}")


def _source(form: OutputFormat) -> str:
    if form.kind == REGEX:
        return llguidance.LLMatcher.grammar_from_regex(form.text)
    if form.kind not in (JSON, CALLS):
        if unhonoured := _UNHONOURED.search(form.text):
            raise InvalidValue(f"{unhonoured[1]} in a {form.kind} is not honoured", param=form.param)
        return llguidance.LLMatcher.grammar_from_lark(form.text)
    schema = json.loads(form.text)
    if form.kind == CALLS:
        return llguidance.LLMatcher.grammar_from_lark(calls_grammar(schema, JSON_OPTIONS, form.param))
    check_schema(schema, form.param)
    options: Any = dict(JSON_OPTIONS)
    return llguidance.LLMatcher.grammar_from_json_schema(closed(without_remarks(schema)), overrides=options)


def _reason(text: str) -> str:
    """llguidance's reason in one line; a regular expression's parser has it in a line of its own."""
    if text.startswith("panic") or "panicked" in text:
        return "it is too large or too deep"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    at = next((line for line in lines if line.startswith("error: ")), "")
    return f"{lines[0][:160]} {at}".strip() if lines else "it cannot be followed"
