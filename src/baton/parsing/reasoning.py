"""Reasoning: what a model thinks before it answers, between tags of its own.

Blanks beside a tag belong to neither text. An opening tag counts at the answer's beginning and after another block: if
a model writes about tags in the middle of a text, they are text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from baton.parsing.blanks import TrailingBlanks
from baton.parsing.deltas import Delta, Parser, Reasoning, Text
from baton.parsing.scanner import Scanner, Steps


class Tags(NamedTuple):
    """The tags around reasoning."""

    opening: str
    closing: str


KNOWN = (
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|channel>thought\n", "<channel|>"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<thinking>", "</thinking>"),
    Tags("<|begin_of_thought|>", "<|end_of_thought|>"),
    Tags("<thought>", "</thought>"),
    Tags("<reasoning>", "</reasoning>"),
)
"""The tags of Qwen, DeepSeek, GLM, Kimi and many more; Magistral; Gemma 4; Command A; Seed-OSS; and rarer ones."""

# Names of the field in existing templates.
_FIELDS = ("reasoning_content", "reasoning", "thinking")
_BLANK = " \n\r\t"


def tags_of(template: str, tokens: frozenset[str], declared: Mapping[str, object] | None = None) -> Tags | None:
    """The tags of a model: declared by its tokenizer, in its tokens, or in its chat template.

    `tokens`: the names of the tokenizer's added tokens. `declared`: the tokenizer's response template.
    """
    declared_fields = (declared or {}).get("fields")
    fields: Mapping[str, object] = declared_fields if isinstance(declared_fields, Mapping) else {}
    for name in _FIELDS:
        field = fields.get(name)
        if isinstance(field, Mapping) and isinstance(field.get("open"), str) and isinstance(field.get("close"), str):
            return Tags(field["open"], field["close"])
    for tags in KNOWN:
        if tags.closing in tokens or tags.closing in template:
            return tags
    return None


def inside(tags: Tags, prompt_end: str) -> bool:
    """Whether a prompt ends in the middle of the model's reasoning. `prompt_end`: the last few tokens, as text."""
    return prompt_end.rstrip(_BLANK).endswith(tags.opening.rstrip(_BLANK))


@dataclass(slots=True)
class PlainText:
    """A parser of answers that are nothing but text."""

    calls = 0
    held = 0
    reasoning = False
    reasons = False

    def push(self, text: str) -> list[Delta]:
        return [Text(text)] if text else []

    def finish(self) -> list[Delta]:
        return []


class ReasoningParser:
    """Separates reasoning and passes all other text to another parser. `begun`: the prompt opened the reasoning."""

    reasons = True

    def __init__(self, tags: Tags, *, begun: bool, rest: Parser | None = None) -> None:
        self._tags = tags
        self._rest: Parser = rest or PlainText()
        self._blanks = TrailingBlanks(_BLANK)
        self._begun = False  # whether this block has any text
        self.reasoning = begun
        self._scanner = Scanner()
        self._scanner.begin(self._read())

    @property
    def calls(self) -> int:
        return self._rest.calls

    @property
    def held(self) -> int:
        return self._scanner.held + self._rest.held + self._blanks.size

    def push(self, text: str) -> list[Delta]:
        return self._scanner.push(text)

    def finish(self) -> list[Delta]:
        return [*self._scanner.finish(), *self._rest.finish()]

    def _read(self) -> Steps:
        scanner, (opening, closing) = self._scanner, self._tags
        behind_block = False
        while True:
            if not self.reasoning:
                blanks = yield from scanner.blanks()
                if not (yield from scanner.tag(opening)):
                    self._answer("" if behind_block else blanks)
                    break
                self.reasoning = True
            yield from scanner.until((closing,), self._think)
            self._blanks.take()
            self._begun = self.reasoning = False
            behind_block = True
        yield from scanner.rest(self._answer)

    def _think(self, text: str) -> None:
        """Holds blanks back until it is known that no tag follows them."""
        if said := self._blanks.add(text):
            self._scanner.out.append(Reasoning(said if self._begun else said.lstrip(_BLANK)))
            self._begun = True

    def _answer(self, text: str) -> None:
        if text:
            self._scanner.out += self._rest.push(text)
