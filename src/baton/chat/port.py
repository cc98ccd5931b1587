"""The source of answers: an engine in this process (`here`), or a server (`remote`)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Message = Mapping[str, str]
"""One turn: `role` and `content`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer, and of the reasoning before it.

    Facts about the whole answer come with its last pieces; None if they are unknown.
    """

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    queue_seconds: float | None = None
    idle_ratio: float | None = None


class Answerer(Protocol):
    """Answers a conversation: a local engine or a server."""

    name: str
    """The model's, for people."""

    def answer(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """The next turn, as it comes; closing the iterator ends it. `sampling`: fields of `SamplingParams`.

        Raises BatonError.
        """
