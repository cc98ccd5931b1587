"""Requests to /v1/responses, and their translation to chat requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, FailFast, Field, Tag

from baton.server.field_rules import RESPONSES, RESPONSES_STREAM, RESPONSES_TOOL, TABLES, Place, Rules
from baton.server.fields import Strict, place_of
from baton.server.responses_items import (
    ITEM_PLACE,
    FunctionCall,
    FunctionCallOutput,
    Item,
    ReasoningItem,
    as_items,
    kind_of,
)
from baton.server.schema import Sampled
from baton.server.translation import Translation, described_tool, shared, text_parts

WITH_LOGPROBS = "message.output_text.logprobs"


class FunctionTool(Strict):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema of an object.")
    strict: bool | None = Field(None, description="Arguments fit the schema whenever the tool is called.")


class NamespaceTool(Strict):
    """Functions that belong together. A call names both."""

    type: Literal["namespace"]
    name: str
    description: str | None = None
    tools: Annotated[list[FunctionTool], FailFast()]


Tool = Annotated[
    Annotated[FunctionTool, Tag("(function)")] | Annotated[NamespaceTool, Tag("(namespace)")],
    Discriminator(lambda tool: kind_of(tool, "function")),
]


def joined_name(namespace: str | None, name: str) -> str:
    """A function's name as the model knows it."""
    return name if namespace is None else f"{namespace}__{name}"


class NamedFunction(Strict):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class Reasoning(Strict):
    """How the model is to reason."""

    effort: str | None = None


class TextFormat(Strict):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Strict):
    """How the answer's text is to be."""

    format: TextFormat | None = None


class ResponsesStreamOptions(Strict):
    """No field of it is honoured."""


_TABLE = TABLES["responses"]
_FUNCTION = place_of(FunctionTool, "tools", RESPONSES_TOOL)
_FORMAT = Place("text.format", frozenset({"type", "name", "description", "schema", "strict"}))


class ResponsesRequest(Sampled):
    """A conversation, as text or items. Nothing is stored, so each request has the whole conversation."""

    rules: ClassVar[Rules] = RESPONSES
    inner: ClassVar[Mapping[str, Place]] = {
        "input": ITEM_PLACE,
        "tools": Place(
            kinds={
                "function": _FUNCTION,
                "namespace": place_of(
                    NamespaceTool, "tools", RESPONSES_TOOL, {"tools": Place(kinds={"function": _FUNCTION})}
                ),
            }
        ),
        "tool_choice": Place(kinds={"function": place_of(NamedFunction, "tool_choice", {})}),
        "reasoning": place_of(Reasoning, "reasoning", _TABLE["reasoning"]),
        "text": place_of(TextConfig, "text", _TABLE["text"], {"format": _FORMAT}),
        "stream_options": place_of(ResponsesStreamOptions, "stream_options", RESPONSES_STREAM),
    }

    input: Annotated[list[Item], FailFast(), BeforeValidator(as_items)]
    instructions: str | None = None
    tools: Annotated[list[Tool], FailFast()] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    top_logprobs: int | None = None
    include: list[str] = Field(
        default_factory=list, description=f"Only {WITH_LOGPROBS} has an effect: there are no hosted tools."
    )
    stream_options: ResponsesStreamOptions | None = None

    def to_chat(self) -> Translation:
        translation = Translation({**shared(self), "messages": []})
        translation.origins |= {
            "messages": "input",
            "max_completion_tokens": "max_output_tokens",
            "reasoning_effort": "reasoning.effort",
            "response_format.json_schema": "text.format",
            "response_format": "text.format",
        }
        if self.instructions:
            translation.add({"role": "system", "content": self.instructions}, "instructions")
        for at, item in enumerate(self.input):
            _add(translation, item, f"input[{at}]")
        self._add_tools(translation)
        self._add_form(translation)
        translation.chat["max_completion_tokens"] = self.max_output_tokens
        if self.reasoning is not None and self.reasoning.effort is not None:
            translation.chat["reasoning_effort"] = self.reasoning.effort
        if self.top_logprobs is not None or WITH_LOGPROBS in self.include:
            translation.chat |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return translation

    @property
    def tools_body(self) -> list[dict[str, Any]]:
        """The tools as a response repeats them."""
        return [tool.model_dump() for tool in self.tools]

    @property
    def tool_choice_body(self) -> str | dict[str, Any]:
        choice = self.tool_choice or "auto"
        return choice if isinstance(choice, str) else choice.model_dump()

    @property
    def form(self) -> dict[str, Any]:
        form = None if self.text is None else self.text.format
        return {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)

    def _add_tools(self, translation: Translation) -> None:
        functions = list(self._functions())
        if functions:
            translation.chat["parallel_tool_calls"] = self.parallel_tool_calls
            translation.chat["tools"] = [
                described_tool(tool.model_dump() | {"name": joined_name(namespace, tool.name)}, "parameters")
                for _, namespace, tool in functions
            ]
            translation.origins |= {f"tools[{at}].function": origin for at, (origin, *_) in enumerate(functions)}
        choice = self.tool_choice
        if isinstance(choice, NamedFunction):
            translation.chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        elif choice is not None:
            translation.chat["tool_choice"] = choice

    def _functions(self) -> Iterator[tuple[str, str | None, FunctionTool]]:
        """Each function's path in the request, its namespace, and the function."""
        for at, tool in enumerate(self.tools):
            if isinstance(tool, NamespaceTool):
                yield from ((f"tools[{at}].tools[{i}]", tool.name, one) for i, one in enumerate(tool.tools))
            else:
                yield f"tools[{at}]", None, tool

    def called(self, name: str) -> dict[str, str]:
        """The name and namespace that a call of this function has in the answer."""
        for _, namespace, tool in self._functions():
            if namespace is not None and joined_name(namespace, tool.name) == name:
                return {"name": tool.name, "namespace": namespace}
        return {"name": name}

    def _add_form(self, translation: Translation) -> None:
        schema = self.form
        kind = schema.pop("type")
        if kind != "text" or schema:
            translation.chat["response_format"] = {"type": kind} | ({"json_schema": schema} if schema else {})


def _add(translation: Translation, item: Any, origin: str) -> None:
    if isinstance(item, FunctionCall):
        call = {"id": item.call_id, "type": "function"}
        called = {"function": {"name": joined_name(item.namespace, item.name), "arguments": item.arguments}}
        translation.add({"role": "assistant", "content": None, "tool_calls": [call | called]}, origin)
    elif isinstance(item, FunctionCallOutput):
        translation.add({"role": "tool", "tool_call_id": item.call_id, "content": text_parts(item.output)}, origin)
    elif isinstance(item, ReasoningItem):
        thought = "".join(part.text for part in item.content or item.summary)
        translation.add({"role": "assistant", "reasoning_content": thought}, origin)
    else:
        translation.add({"role": item.role, "content": text_parts(item.content)}, origin)
