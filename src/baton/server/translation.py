"""Requests of other APIs as chat requests: one validation for all, with errors in the names that were sent."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from baton.core.errors import RequestError
from baton.server.schema import Sampled

SAME = tuple(name for name in Sampled.model_fields)
"""Fields that have the same name and meaning in all APIs."""


_SYSTEM = {"system", "developer"}


@dataclass(slots=True)
class Translation:
    """`chat`: the body of a chat request. `origins`: the original field from which each of its fields comes.

    A nested field has the origin of its parent, with the rest of its path behind it. `whole`: fields whose origin also
    holds for everything inside them.
    """

    chat: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.chat["messages"]
        return messages

    def add(self, message: dict[str, Any], origin: str, *, goes_on: bool = False) -> None:
        """Adds the next message. Calls and reasoning go to the assistant's message before, if there is one.

        `goes_on`: text that continues the message before.
        """
        last = self.messages[-1] if self.messages else None
        calls = message.get("tool_calls")
        if last is not None and last["role"] == message["role"] == "assistant" and calls:
            at = len(last.setdefault("tool_calls", []))
            last["tool_calls"] += calls
            self._comes_from(f"messages[{len(self.messages) - 1}].tool_calls[{at}]", origin)
        elif last is not None and len(self.messages) == 1 and {last["role"], message["role"]} <= _SYSTEM:
            # Chat templates know one system message, and it comes first.
            last["content"] = [*text_parts(last["content"]), *text_parts(message["content"])]
        elif last is not None and goes_on and isinstance(last.get("content"), list) and _same_speaker(last, message):
            last["content"] += message["content"]
        elif last is not None and _only_reasoning(last) and message["role"] == "assistant":
            last |= message
            self._comes_from(f"messages[{len(self.messages) - 1}]", origin)
        else:
            self.messages.append(message)
            self._comes_from(f"messages[{len(self.messages) - 1}]", origin)
            if calls:
                self._comes_from(f"messages[{len(self.messages) - 1}].tool_calls[0]", origin)

    def _comes_from(self, path: str, origin: str) -> None:
        self.origins[path] = origin
        self.whole.add(path)

    def origin(self, param: str) -> str:
        """Returns which field of the original an error of the chat request is about."""
        for end in range(len(param), 0, -1):
            path = param[:end]
            if path in self.origins and (end == len(param) or param[end] in ".["):
                return self.origins[path] + ("" if path in self.whole else param[end:])
        return param

    @contextmanager
    def in_its_names(self) -> Generator[None, None, None]:
        """Raises errors of the chat request as errors of the original."""
        try:
            yield
        except RequestError as error:
            if error.param is not None:
                origin = self.origin(error.param)
                error.message = error.message.replace(error.param, origin)
                error.param = origin
            raise


def text_parts(content: object) -> list[dict[str, str]]:
    """A content, or the parts of one, as chats have it."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    assert isinstance(content, list)
    return [part if isinstance(part, dict) else {"type": "text", "text": part.text} for part in content]


def shared(sent: Sampled) -> dict[str, Any]:
    """The fields of a request that need no translation."""
    return {name: getattr(sent, name) for name in SAME if name in sent.model_fields_set}


def described_tool(tool: Mapping[str, Any], parameters: str) -> dict[str, Any]:
    """A tool as chats have it. `parameters`: the name under which the original has its schema."""
    function = {"name": tool["name"], "description": tool.get("description"), "parameters": tool.get(parameters)}
    return {"type": "function", "function": function | {"strict": tool.get("strict")}}


def _same_speaker(last: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    return bool(last["role"] == message["role"]) and "tool_calls" not in last


def _only_reasoning(message: Mapping[str, Any]) -> bool:
    return message.keys() == {"role", "reasoning_content"}
