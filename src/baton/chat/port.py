"""Whoever answers: the engine in this process (`here`), or a server (`remote`)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Message = Mapping[str, str]
"""One turn: `role` and `content`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of an answer, and of what was thought before it.

    What is known of the whole comes with its last pieces; None where nobody says it.
    """

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    queue_seconds: float | None = None
    idle_ratio: float | None = None


class Answerer(Protocol):
    """Who answers a conversation: a local engine or a server."""

    name: str
    """The model's, for people."""

    def answer(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """The next turn, as it comes; closing the iterator ends it. `sampling`: fields of `SamplingParams`.

        Raises BatonError.
        """
