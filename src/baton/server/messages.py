"""The turns of a conversation as requests have them, and as chat templates take them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, ValidationError

from baton.core.errors import InvalidValue, Unsupported
from baton.core.text import ArgumentsText, PartedText
from baton.server.field_rules import CALLED, MESSAGE, PART, TOOL_CALL, Place
from baton.server.fields import Strict, place_of


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """The function that a tool call named."""

    name: str
    arguments: str = Field(description="A JSON object, as text; an empty text is an object without fields.")


class ToolCallSent(Strict):
    """A call that an assistant made earlier in the conversation."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(Strict):
    """`content` may be missing from a tool's message, and from an assistant's with tool calls. `name`: of a tool."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: Annotated[list[ToolCallSent], FailFast()] = Field(default_factory=list)
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = Field(None, description="What an assistant thought; reasoning is another name.")
    reasoning: str | None = None


_CALLED = place_of(CalledFunction, "messages.tool_calls.function", CALLED)
_INSIDE = {
    "content": Place(kinds={"text": place_of(TextPart, "messages.content", PART)}),
    "tool_calls": place_of(ToolCallSent, "messages.tool_calls", TOOL_CALL, {"function": _CALLED}),
}
MESSAGE_PLACE: Place = place_of(Message, "messages", MESSAGE, _INSIDE, name="tool")


def _checked(value: object) -> object:
    if isinstance(value, list):
        for at, message in enumerate(value):
            if isinstance(message, dict):
                _check_message(message, f"messages[{at}]")
    return value


Messages = Annotated[list[Message], FailFast(), BeforeValidator(_checked), Field(min_length=1)]


def turns_of(messages: list[Message]) -> list[dict[str, Any]]:
    """The conversation as a chat template takes it; a developer's message becomes a system's. Raises InvalidValue."""
    known: set[str] = set()
    turns = []
    for at, message in enumerate(messages):
        turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
        if isinstance(message.content, list):
            turn["content"] = PartedText([part.text for part in message.content])
        elif message.content is not None or message.role == "tool":
            turn["content"] = message.content or ""
        if thought := message.reasoning_content or message.reasoning:
            turn["reasoning_content"] = thought
        if message.tool_calls:
            turn["tool_calls"] = [
                _call(call, f"messages[{at}].tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
            ]
            known.update(call.id for call in message.tool_calls)
        if message.role == "tool":
            if message.tool_call_id not in known:
                where = f"messages[{at}].tool_call_id"
                raise InvalidValue(f"{where}: no tool call before has the id {message.tool_call_id!r}", param=where)
            turn["tool_call_id"] = message.tool_call_id
            turn |= {"name": message.name} if message.name else {}
        turns.append(turn)
    return turns


def check_template(turns: list[dict[str, Any]], template: str | None) -> None:
    """Raises Unsupported if the turns have tool calls and the chat template's source does not mention them."""
    for at, turn in enumerate(turns):
        for name, param in (("tool_calls", "tool_calls"), ("tool_call_id", "role")):
            if name in turn and (template or "").count("tool_calls" if name == "tool_calls" else "tool") == 0:
                where = f"messages[{at}].{param}"
                raise Unsupported(f"{where}: this model's chat template says nothing of tools", param=where)


def _call(sent: ToolCallSent, where: str) -> dict[str, Any]:
    """Templates write arguments as JSON themselves, or join the text."""
    param, text = f"{where}.function.arguments", sent.function.arguments or "{}"
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidValue(f"{param} must be a JSON object, as text", param=param)
    called = {"name": sent.function.name, "arguments": ArgumentsText(arguments, text)}
    return {"id": sent.id, "type": "function", "function": called}


_THOUGHT = (("reasoning_content", "assistant"), ("reasoning", "assistant"))


def _check_message(message: dict[str, object], where: str) -> None:
    role, calls = message.get("role"), message.get("tool_calls")
    if role == "function":
        raise Unsupported(f"{where}.role 'function' is not honoured: tool is", param=f"{where}.role")
    for name, whose in (("tool_calls", "assistant"), ("tool_call_id", "tool"), *_THOUGHT):
        if message.get(name) and role != whose:
            raise Unsupported(f"{where}.{name} is only for role {whose}", param=f"{where}.{name}")
    content = message.get("content")
    if isinstance(content, list):
        for at, part in enumerate(content):
            _check_part(part, f"{where}.content[{at}]")
    elif not isinstance(content, str) and (content is not None or not (calls or role == "tool")):
        where += ".content"
        raise InvalidValue(f"{where} must be a text or a list of text parts", param=where)


def _check_part(part: object, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise Unsupported(f"{where}.type {kind!r} is not honoured: only text is", param=f"{where}.type")
    try:
        TextPart.model_validate(part)
    except ValidationError:
        raise InvalidValue(f'{where} must be {{"type": "text", "text": "..."}}', param=where) from None
