"""Messages as chat templates take them: words as a text or as parts, arguments as a mapping or as a text.

Templates differ in what they take, and do not say so. If one value can serve both, it is passed. If a text and a list
of parts are different things, the rendering itself shows which of them was used.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import Undefined

from baton.core.errors import InvalidValue
from baton.core.limits import LimitExceeded
from baton.core.text import ArgumentsText, PartedText

Write = Callable[[Sequence[Mapping[str, Any]]], str]
"""Renders messages."""

_REASONING = ("reasoning_content", "reasoning", "thinking")
# A text of so many characters appears in a prompt only if it was put there.
_CERTAIN = 16


class Null(Undefined):
    """A missing value that was null: undefined for everything but `is none` and `== none`."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other is None or super().__eq__(other)

    def __hash__(self) -> int:
        return super().__hash__()


def is_none(value: object) -> bool:
    """The test `none` of templates."""
    return value is None or isinstance(value, Null)


class _Turn(dict[str, Any]):
    """A message. Templates handle missing values, not nulls; some ask whether a value `is none`."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        super().__init__({name: value for name, value in message.items() if value is not None})
        self._nulls = {name for name in (*message, "content") if name not in self}

    def __missing__(self, name: str) -> Null:
        if name in self._nulls:
            return Null(obj=self, name=name)
        raise KeyError(name)


class _Unwritten:
    """If a template writes this object as it is, the template wanted a text."""

    def __str__(self) -> NoReturn:
        raise TypeError("the chat template writes content parts as Python does")

    __repr__ = __str__


class _Part(_Unwritten, dict[str, str]):
    pass


class _Parts(_Unwritten, list[_Part]):
    pass


def rendered(
    messages: Sequence[Mapping[str, Any]], write: Write, *, reads_words: bool, takes_parts: bool, proved: set[str]
) -> str:
    """The prompt of a conversation, which contains its words.

    `reads_words`: the template reads what messages say. `takes_parts`: it may want parts. `proved`: the roles whose
    words it is known to write; grows if the template knows no parts. Raises what `write` raises, and InvalidValue if
    nothing that was said is in the prompt.
    """
    turns = [_turn(message) for message in messages]
    said = {at: turn["content"] for at, turn in enumerate(turns) if _is_said(turn)}
    if not reads_words or not said:
        return write(turns)
    failed: Exception | None = None
    lost: Collection[int] = said
    text = ""
    try:
        text = write(turns)
        lost = _lost(turns, said, text, write) if takes_parts else _all_lost(turns, said, text, write, proved)
    except LimitExceeded:
        raise
    except Exception as error:
        if not takes_parts:
            raise
        failed = error
    if lost and takes_parts:
        other = _in_parts(turns, said, lost, write)
        if other is not None and (len(other[1]) < len(lost) if failed is None else not other[1]):
            (text, lost), failed = other, None
    if failed is not None:
        raise failed
    if len(lost) == len(said):
        raise InvalidValue("the chat template leaves out all that these messages say", param="messages")
    return text


def _in_parts(
    turns: Sequence[_Turn], said: Mapping[int, str], which: Collection[int], write: Write
) -> tuple[str, Collection[int]] | None:
    """Renders these turns in parts. Returns the prompt and the turns that are still lost; None if it fails."""
    parted = [_parted(turn) if at in which else turn for at, turn in enumerate(turns)]
    try:
        text = write(parted)
    except LimitExceeded:
        raise
    except Exception:
        return None
    return text, _lost(parted, said, text, write)


def _all_lost(
    turns: Sequence[_Turn], said: Mapping[int, str], text: str, write: Write, proved: set[str]
) -> Collection[int]:
    """All of the turns if the prompt is the same without their words, else none.

    A role whose words were found once is not tried again.
    """
    roles = {at: str(turns[at].get("role")) for at, word in said.items() if word.strip() in text}
    if not proved.isdisjoint(roles.values()):
        return ()
    others = _other_words(said)
    try:
        probe = write([_saying(turn, others[at]) if at in others else turn for at, turn in enumerate(turns)])
    except Exception:
        return ()  # unknown
    proved.update(role for at, role in roles.items() if others[at] in probe)
    return said if probe == text else ()


def _lost(turns: Sequence[_Turn], said: Mapping[int, str], text: str, write: Write) -> Collection[int]:
    """The turns whose words are not in the prompt, neither as they are nor changed by the template.

    Other words in their place show whether a short text is there by chance, or whether a changed one is there.
    """
    words = {at: word.strip() for at, word in said.items()}
    doubtful = [at for at, word in words.items() if word not in text or len(word) < _CERTAIN]
    if not doubtful:
        return ()
    others = _other_words(doubtful)
    try:
        probe = write([_saying(turn, others[at]) if at in others else turn for at, turn in enumerate(turns)])
    except Exception:
        return ()  # unknown
    return [at for at, word in others.items() if word not in probe]


def _other_words(which: Iterable[int]) -> dict[int, str]:
    """Words that are in no prompt by chance: digits, which capitals do not change."""
    return {at: str(secrets.randbelow(9 * 10**15) + 10**15) for at in which}


def _is_said(turn: _Turn) -> bool:
    content = turn.get("content")
    return isinstance(content, str) and bool(content.strip())


def _saying(turn: _Turn, words: str) -> _Turn:
    in_parts = isinstance(turn["content"], _Parts)
    return _Turn({**turn, "content": _Parts([_Part(type="text", text=words)]) if in_parts else words})


def _parted(turn: _Turn) -> _Turn:
    content = turn["content"]
    texts = content.parts if isinstance(content, PartedText) else (content,)
    return _Turn({**turn, "content": _Parts(_Part(type="text", text=text) for text in texts)})


def _turn(message: Mapping[str, Any]) -> _Turn:
    turn = _Turn(message)
    content = turn.get("content")
    if isinstance(content, list) and content and all(map(_is_text_part, content)):
        turn["content"] = PartedText([part["text"] for part in content])
    thought = next((turn[name] for name in _REASONING if turn.get(name) is not None), None)
    if thought is not None:
        # Templates read it under one of these names.
        turn.update(dict.fromkeys(_REASONING, thought))
    calls = turn.get("tool_calls")
    if isinstance(calls, (list, tuple)):
        turn["tool_calls"] = [_call(call) for call in calls]
    return turn


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _call(call: Any) -> Any:
    called: Any = call.get("function") if isinstance(call, Mapping) else None
    arguments = called.get("arguments") if isinstance(called, Mapping) else None
    if isinstance(arguments, ArgumentsText):
        return call
    if isinstance(arguments, Mapping):
        both = ArgumentsText(arguments, json.dumps(arguments, ensure_ascii=False))
    elif isinstance(arguments, str):
        try:
            read = json.loads(arguments)
        except (ValueError, RecursionError):
            return call
        if not isinstance(read, dict):
            return call
        both = ArgumentsText(read, arguments)
    else:
        return call
    return {**call, "function": {**called, "arguments": both}}
