"""How an answer is read: its model's reasoning and tool calls, and the special tokens that mark them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from baton.parsing.deltas import Parser
from baton.parsing.harmony import Harmony
from baton.parsing.reasoning import ReasoningParser, Tags, inside, tags_of
from baton.parsing.styles import HARMONY, style_of

# A prompt's last tokens, which may contain a tag that opens the reasoning.
_PROMPT_END = 32


class Tokenizer(Protocol):
    """The part of a tokenizer that is used here; see `engine/port.py`."""

    @property
    def special(self) -> Mapping[str, int]: ...
    @property
    def added(self) -> frozenset[str]: ...
    @property
    def response_template(self) -> Mapping[str, Any] | None: ...
    def chat_template(self, *, tools: bool) -> str | None: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...


class Tools(Protocol):
    """Tools that the answer may call. `form`: of the answer, None if it is free."""

    @property
    def form(self) -> object: ...
    @property
    def visible_special_tokens(self) -> frozenset[int]: ...
    def parser(self) -> Parser: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """How answers of one prompt are read: as text, reasoning and tool calls.

    `visible_special_tokens`: special tokens that the parser must see in the text. `parser_of` makes a parser for each
    choice, from the prompt's tokens and the words with which the answer continues.
    """

    visible_special_tokens: frozenset[int]
    parser_of: Callable[[Sequence[int], str], Parser | None]


def tags_in(tokenizer: Tokenizer) -> Tags | None:
    """The tags of the model's reasoning; None if it does not reason, or has channels instead."""
    template = tokenizer.chat_template(tools=False) or ""
    return tags_of(template, tokenizer.added, tokenizer.response_template)


def reasons(tokenizer: Tokenizer) -> bool:
    """Whether the model is known to reason."""
    return tags_in(tokenizer) is not None or _style(tokenizer) is HARMONY


def reading_of(tokenizer: Tokenizer, tools: Tools | None, *, formed: bool, reasoning: bool) -> Reading:
    """`formed`: the answer has a form that is not of calls. `reasoning`: it is separated."""
    calls_formed = tools is not None and tools.form is not None
    if _style(tokenizer) is HARMONY and not formed:
        return Reading(_special_in(tokenizer, HARMONY.tags), lambda prompt, begun: _harmony(tools, reasoning))
    visible_special_tokens = tools.visible_special_tokens if tools else frozenset[int]()
    tags = tags_in(tokenizer) if reasoning and not formed and not calls_formed else None
    if tags is None:
        return Reading(visible_special_tokens, lambda prompt, begun: tools.parser() if tools else None)

    def parser_of(prompt: Sequence[int], begun: str) -> Parser:
        end = tokenizer.decode(prompt[-_PROMPT_END:], skip_special_tokens=False)
        opened = inside(tags, end) or begun.rfind(tags.opening) > begun.rfind(tags.closing)
        return ReasoningParser(tags, begun=opened, rest=tools.parser() if tools else None)

    return Reading(visible_special_tokens | _special_in(tokenizer, tags), parser_of)


def _style(tokenizer: Tokenizer) -> object:
    return style_of(tokenizer.chat_template(tools=True) or "", tokenizer.response_template)


def _harmony(tools: Tools | None, reasoning: bool) -> Parser:
    parser = Harmony({}) if tools is None else tools.parser()
    assert isinstance(parser, Harmony)
    parser.tells_reasoning = parser.reasons = reasoning
    return parser


def _special_in(tokenizer: Tokenizer, tags: Sequence[str]) -> frozenset[int]:
    """The special tokens in these tags."""
    special = tokenizer.special.items()
    return frozenset(token for name, token in special if name and any(name in tag for tag in tags))
