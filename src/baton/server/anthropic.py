"""Requests to /v1/messages, in Anthropic's form, and their translation to chat requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, FailFast, Field, Tag

from baton.core.errors import InvalidValue
from baton.core.template_options import has_switch
from baton.server.field_rules import MESSAGES, TABLES, Place, Rules
from baton.server.fields import Strict, place_of
from baton.server.schema import Sampled
from baton.server.translation import Translation, described_tool, shared, text_parts


class TextBlock(Strict):
    """A text."""

    type: Literal["text"] = "text"
    text: str


class ThinkingBlock(Strict):
    """What the model thought earlier."""

    type: Literal["thinking"]
    thinking: str


class ToolUseBlock(Strict):
    """A tool call that the model made earlier."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


def _as_blocks(value: object) -> object:
    return [{"text": value}] if isinstance(value, str) else value


Texts = Annotated[list[TextBlock], FailFast(), BeforeValidator(_as_blocks)]


class ToolResultBlock(Strict):
    """What a tool returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts = Field(default_factory=list)


def _kind(value: object) -> str:
    """The tag of a block. The parentheses keep it apart from a field's name in an error's location."""
    return f"({value.get('type', 'text') if isinstance(value, dict) else getattr(value, 'type', None)})"


ContentBlock = Annotated[
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[ThinkingBlock, Tag("(thinking)")]
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")],
    Discriminator(_kind),
]
_BLOCKS: Mapping[str, type[Strict]] = {
    "text": TextBlock,
    "thinking": ThinkingBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
}


class InputTurn(Strict):
    """A turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[list[ContentBlock], FailFast(), BeforeValidator(_as_blocks)]


class CustomTool(Strict):
    """A tool that the model may call."""

    type: Literal["custom"] = "custom"
    name: str
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="A JSON Schema of an object.")
    strict: bool | None = Field(None, description="Arguments fit the schema whenever the tool is called.")


class ToolChoice(Strict):
    """Whether tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, description="Of the tool, for type tool.")
    disable_parallel_tool_use: bool = False


class Thinking(Strict):
    """Whether the model is to think. It has no effect if the chat template has no switch for it."""

    type: Literal["enabled", "adaptive", "disabled"]


class JsonFormat(Strict):
    """A schema that the answer must fit."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """The form and effort of the answer."""

    effort: str | None = None
    format: JsonFormat | None = None


class Metadata(Strict):
    """The end user that asks."""

    user_id: str | None = None


_TABLE = TABLES["messages"]
_BLOCK = _TABLE["messages.content"]
_TEXT = place_of(TextBlock, "messages.content", _BLOCK)
_RESULT = {"content": Place(kinds={"text": _TEXT})}
_BLOCK_PLACE = Place(
    kinds={
        kind: place_of(model, "messages.content", _BLOCK, _RESULT if kind == "tool_result" else {})
        for kind, model in _BLOCKS.items()
    }
)
_CONFIG = place_of(
    OutputConfig, "output_config", {}, {"format": Place("output_config.format", frozenset({"type", "schema"}))}
)


class Conversation(Strict):
    """What the prompt is made of: all that counting its tokens needs."""

    rules: ClassVar[Rules] = MESSAGES
    inner: ClassVar[Mapping[str, Place]] = {
        "messages": place_of(InputTurn, "messages", _TABLE["messages"], {"content": _BLOCK_PLACE}),
        "system": Place(kinds={"text": place_of(TextBlock, "system", _TABLE["system"])}),
        "tools": Place(kinds={"custom": place_of(CustomTool, "tools", _TABLE["tools"])}),
        "tool_choice": place_of(ToolChoice, "tool_choice", {}),
        "thinking": place_of(Thinking, "thinking", _TABLE["thinking"]),
        "metadata": place_of(Metadata, "metadata", {}),
        "output_config": _CONFIG,
    }

    messages: Annotated[list[InputTurn], FailFast()] = Field(min_length=1)
    system: Texts = Field(default_factory=list)
    tools: Annotated[list[CustomTool], FailFast()] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def translated(self, known: frozenset[str]) -> Translation:
        """Returns the chat request. `known`: the variables that the chat template reads. Raises InvalidValue."""
        translation = Translation({"messages": []})
        translation.origins |= {
            "messages": "messages",
            "reasoning_effort": "output_config.effort",
            "response_format.json_schema": "output_config.format",
            "response_format": "output_config.format",
        }
        if self.system:
            translation.add({"role": "system", "content": text_parts(self.system)}, "system")
        for at, turn in enumerate(self.messages):
            for block_at, block in enumerate(turn.content):
                _add(translation, turn, block, f"messages[{at}].content[{block_at}]")
            if not turn.content:
                translation.add({"role": turn.role, "content": ""}, f"messages[{at}]")
        self._add_tools(translation)
        self._add_thinking(translation, known)
        if self.messages[-1].role == "assistant":
            translation.chat["continue_final_message"] = True
        return translation

    def _add_tools(self, translation: Translation) -> None:
        translation.chat["tools"] = [described_tool(tool.model_dump(), "input_schema") for tool in self.tools]
        for at in range(len(self.tools)):
            translation.origins[f"tools[{at}].function"] = f"tools[{at}]"
            translation.origins[f"tools[{at}].function.parameters"] = f"tools[{at}].input_schema"
        choice = self.tool_choice
        if choice is None:
            return
        if (choice.name is None) == (choice.type == "tool"):
            raise InvalidValue("tool_choice.name is for type tool, which needs it", param="tool_choice.name")
        named = {"type": "function", "function": {"name": choice.name}}
        translation.chat["tool_choice"] = {"any": "required", "tool": named}.get(choice.type, choice.type)
        if self.tools and choice.disable_parallel_tool_use:
            translation.chat["parallel_tool_calls"] = False

    def _add_thinking(self, translation: Translation, known: frozenset[str]) -> None:
        config = self.output_config
        if config is not None and config.effort is not None:
            translation.chat["reasoning_effort"] = config.effort
        elif self.thinking is not None and (self.thinking.type == "disabled" or has_switch(known)):
            # A model without a switch thinks or does not: there is nothing to turn on.
            translation.chat["reasoning_effort"] = "none" if self.thinking.type == "disabled" else "medium"
            translation.origins["reasoning_effort"] = "thinking.type"
        if config is not None and config.format is not None:
            form = {"name": "output", "schema": config.format.schema_}
            translation.chat["response_format"] = {"type": "json_schema", "json_schema": form}


class MessagesRequest(Conversation, Sampled):
    """A conversation to continue."""

    max_tokens: int = Field(description="Where the context has less room, the answer ends there.")
    stop_sequences: Annotated[list[str], FailFast()] = Field(default_factory=list)
    metadata: Metadata | None = None

    def to_chat(self, known: frozenset[str]) -> Translation:
        """Returns the chat request. `known`: the variables that the chat template reads. Raises InvalidValue."""
        translation = self.translated(known)
        translation.chat |= {**shared(self), "max_tokens": self.max_tokens}
        if self.stop_sequences:
            translation.chat["stop"] = self.stop_sequences
            translation.origins["stop"] = "stop_sequences"
        if self.metadata is not None and self.metadata.user_id is not None:
            translation.chat["user"] = self.metadata.user_id
            translation.origins["user"] = "metadata.user_id"
        return translation


class CountRequest(Conversation):
    """A conversation whose tokens are counted."""

    model: str | None = None

    def to_chat(self, known: frozenset[str]) -> Translation:
        """Returns the chat request. `known`: the variables that the chat template reads. Raises InvalidValue."""
        translation = self.translated(known)
        translation.chat["model"] = self.model
        return translation


def _add(translation: Translation, turn: InputTurn, block: Any, origin: str) -> None:
    if isinstance(block, ToolUseBlock):
        if turn.role != "assistant":
            raise InvalidValue(f"{origin}: tool_use is only for role assistant", param=origin)
        function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
        call = {"id": block.id, "type": "function", "function": function}
        translation.add({"role": "assistant", "content": None, "tool_calls": [call]}, origin)
    elif isinstance(block, ToolResultBlock):
        if turn.role != "user":
            raise InvalidValue(f"{origin}: tool_result is only for role user", param=origin)
        message = {"role": "tool", "tool_call_id": block.tool_use_id, "content": text_parts(block.content)}
        translation.add(message, origin)
    elif isinstance(block, ThinkingBlock):
        if turn.role != "assistant":
            raise InvalidValue(f"{origin}: thinking is only for role assistant", param=origin)
        translation.add({"role": "assistant", "reasoning_content": block.thinking}, origin)
    else:
        translation.add(
            {"role": turn.role, "content": text_parts([block])}, origin, goes_on=block is not turn.content[0]
        )
