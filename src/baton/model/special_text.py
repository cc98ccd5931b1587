"""Special tokens in users' texts: encoded as plain text, while those of the template stay tokens.

A second rendering tells them apart: in it, one character of each such token is replaced wherever users wrote it. A
token that is still there is the template's own. This works however a user's token came about: from a message, from a
part of one after a part of the template, or from a cut that the template makes.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

from baton.core.errors import InvalidValue
from baton.core.text import ArgumentsText, PartedText

Encode = Callable[[str], list[int]]
Message = Mapping[str, Any]

# Noncharacters, and characters without an assigned meaning.
_STAND_INS = (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))
# Fields whose values templates compare, and that are not a user's words.
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_SAID = ("content", "name")
_FIXED = {"role": {"system", "user", "assistant", "tool"}, "type": {"function", "text"}}


class SpecialText:
    """For one tokenizer and one template.

    `special`: ids by name of the tokens that are not text. `added`: names of all tokens that the tokenizer's own rules
    do not make; those that the template writes, and does not look for in messages, are not text either. `looked_for`:
    texts that it looks for. `backend`: the tokenizer as JSON, None if there is none. `normalize`: what is done to a
    text before some of the tokens are looked for in it; None for nothing.
    """

    def __init__(
        self,
        special: Mapping[str, int],
        added: Mapping[str, int],
        *,
        unknown: str | None,
        source: str,
        looked_for: frozenset[str],
        backend: Callable[[], str | None],
        normalize: Callable[[str], str] | None = None,
    ) -> None:
        written = {
            name: token
            for name, token in added.items()
            if name in source and name.strip() and not any(name in text for text in looked_for)
        }
        self._guarded = {name: token for name, token in {**written, **special}.items() if name}
        # An unknown character also has this token, so it is looked for by its name alone.
        self._control = frozenset(token for name, token in self._guarded.items() if name != unknown)
        self._unknown = unknown if unknown in self._guarded else None
        self._added = {**added, **self._guarded}
        self._backend = backend
        self._normalize = normalize
        avoided = frozenset(chain.from_iterable(looked_for))
        # Marked in messages' texts; elsewhere templates compare fields' names and look for nothing.
        self._in_words = set(chain.from_iterable(_marks_of(name, avoided) for name in self._guarded))
        self._signs = {one for name in self._guarded for one in name if _is_sign(one)}

    def prepare(self) -> None:
        """Does now what would delay the first text with such a token."""
        self._apart  # noqa: B018

    def tokens(
        self,
        plain: list[int],
        messages: Sequence[Message],
        others: Any,
        write: Callable[[Sequence[Message], Any], str],
        encode: Encode,
    ) -> list[int]:
        """The prompt of a conversation. `plain`: the prompt with all special tokens; returned if no token is a user's.

        `others`: what users wrote besides the messages: tools, documents. `write` renders messages and others. Raises
        InvalidValue if a special token cannot be written as text.
        """
        said = "\0".join(_texts([messages, others]))
        variants = self._variants(said)
        in_words, elsewhere = self._in_words | self._inner(messages) | variants, self._signs | variants
        if not any(mark in said for mark in in_words | elsewhere):
            return plain
        marked_as = self._stand_ins(sorted(in_words | elsewhere), said)
        to_text = str.maketrans({stand_in: mark for mark, stand_in in marked_as.items()})
        signs, words = (str.maketrans({mark: marked_as[mark] for mark in some}) for some in (elsewhere, in_words))
        turns = [_marked_message(message, signs, words) for message in messages]
        try:
            marked = write(turns, _marked(others, signs))
        except Exception:
            if not any(name in said for name in self._guarded):
                return plain
            raise
        unknown, own = self._unknown is not None and self._unknown in said, self._own(encode(marked))
        if not unknown and own == self._own(plain):
            return plain
        for one in marked_as.values():
            # A template may write JSON without any such character.
            marked = marked.replace(f"\\u{ord(one):04x}", one)
        return self._encoded(marked, frozenset(own), to_text)

    def _own(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token in self._control]

    def _inner(self, messages: Sequence[Message]) -> set[str]:
        """A character of each text that may be inside of a token whose signs are the template's."""
        words = (word.strip() for message in messages for word in _words(message))
        return {word[0] for word in words if word and any(word in name for name in self._guarded)}

    def _variants(self, said: str) -> set[str]:
        """Other characters that normalisation turns into signs of names, such as wide ones."""
        if self._normalize is None:
            return set()
        others = ((one, self._normalize(one)) for one in set(said) if not one.isascii())
        return {one for one, becomes in others if not self._signs.isdisjoint(becomes)}

    def _stand_ins(self, marks: Sequence[str], said: str) -> dict[str, str]:
        taken = {*map(ord, set(said)), *(int(digits, 16) for digits in _ESCAPE.findall(said))}
        free = (chr(one) for one in _STAND_INS if one not in taken)
        by_mark = dict(zip(marks, free, strict=False))
        if len(by_mark) < len(marks):
            raise InvalidValue("these messages have special tokens, and all private characters", param="messages")
        return by_mark

    def _encoded(self, marked: str, own: Collection[int], to_text: Mapping[int, Any]) -> list[int]:
        """The tokens of a marked text, in which only names without a mark are tokens."""
        if self._apart is None:
            raise InvalidValue("this model's tokenizer cannot write special tokens as text", param="messages")
        apart, aliases, numbers = self._apart
        names = sorted((name for name, token in self._guarded.items() if token in own), key=len, reverse=True)
        pieces, at = [], 0
        for match in re.finditer("|".join(map(re.escape, names)) or r"(?!)", marked):
            pieces += [marked[at : match.start()].translate(to_text), aliases[match[0]]]
            at = match.end()
        pieces.append(marked[at:].translate(to_text))
        tokens = apart.encode_batch_fast(["".join(pieces)], add_special_tokens=False)[0].ids
        if any(token in self._control and token not in numbers for token in tokens):
            raise InvalidValue("this model's tokenizer cannot write these special tokens as text", param="messages")
        return [numbers.get(token, token) for token in tokens]

    @cached_property
    def _apart(self) -> tuple[Tokenizer, Mapping[str, str], Mapping[int, int]] | None:
        """The same tokenizer with other names for the tokens; these names; and the original ids of its ids.

        Nobody can know those names. None if there is no such tokenizer.
        """
        source = self._backend()
        if source is None:
            return None
        secret = secrets.token_hex(16)
        aliases = {name: f"{secret}{at:06d}" for at, name in enumerate(self._guarded)}
        begin = source.index('"added_tokens":') + len('"added_tokens":')
        # The rest, of a large vocabulary, need not be read.
        known, end = json.JSONDecoder().raw_decode(source, begin)
        for token in known:
            if token["content"] in aliases:
                token |= {"content": aliases[token["content"]], "normalized": False, "single_word": False}
        apart = Tokenizer.from_str(source[:begin] + json.dumps(known) + source[end:])
        names = {token["content"] for token in known}
        real = {aliases.get(name, name): token for name, token in self._added.items()}
        numbers = {apart.token_to_id(name): token for name, token in real.items() if name in names}
        return apart, aliases, {one: token for one, token in numbers.items() if one is not None}


def _is_sign(one: str) -> bool:
    return not (one.isalnum() or one.isspace() or one == "_")


def _marks_of(name: str, avoided: frozenset[str]) -> Sequence[str]:
    """The signs in a name that the template does not look for; else one character."""
    signs = [one for one in name if _is_sign(one) and one not in avoided]
    return signs or [next((one for one in name if one not in avoided), name[0])]


def _words(message: Message) -> Iterator[str]:
    """A message's words, part by part, and its role."""
    for value in map(message.get, _SAID):
        if isinstance(value, PartedText):
            yield from value.parts
        elif isinstance(value, str):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (
                part["text"] for part in value if isinstance(part, Mapping) and isinstance(part.get("text"), str)
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _texts(name)
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
    if isinstance(value, ArgumentsText):
        yield str(value)


def _marked_message(message: Message, signs: Mapping[int, Any], words: Mapping[int, Any]) -> dict[str, Any]:
    return {name: _marked(one, words if name in _SAID else signs, name) for name, one in message.items()}


def _marked(value: Any, marks: Mapping[int, Any], field: str = "") -> Any:
    """The same value of a field, with marks wherever users may have written."""
    if isinstance(value, PartedText):
        return PartedText([part.translate(marks) for part in value.parts])
    if isinstance(value, str):
        return value if value in _FIXED.get(field, ()) else value.translate(marks)
    if isinstance(value, ArgumentsText):
        named = {name.translate(marks): _marked(one, marks) for name, one in value.items()}
        return ArgumentsText(named, str(value).translate(marks))
    if isinstance(value, Mapping) and field in _SAID:
        # A part of a content.
        return {name: _marked(one, marks, name) for name, one in value.items()}
    if isinstance(value, Mapping):
        return {_marked(name, marks): _marked(one, marks, str(name)) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_marked(one, marks, field) for one in value]
    return value
