"""Items of conversations as requests to /v1/responses have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, FailFast, Field, Tag

from baton.server.field_rules import ITEM, ITEM_PART, Place
from baton.server.fields import Strict, place_of


class InputText(Strict):
    """A text of a message, of a tool's output or of reasoning."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"] = "input_text"
    text: str


class RefusalPart(Strict):
    """What an assistant refused with."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


def kind_of(value: object, default: str) -> str:
    """The tag of an object. The parentheses keep it apart from a field's name in an error's location."""
    return f"({value.get('type', default) if isinstance(value, dict) else getattr(value, 'type', None)})"


def _as_parts(value: object) -> object:
    return [{"text": value}] if isinstance(value, str) else value


_PARTS: Mapping[str, type[Strict]] = {
    "input_text": InputText,
    "output_text": InputText,
    "text": InputText,
    "refusal": RefusalPart,
}
Part = Annotated[
    Annotated[InputText, Tag("(input_text)")] | Annotated[RefusalPart, Tag("(refusal)")],
    Discriminator(lambda part: "(refusal)" if kind_of(part, "") == "(refusal)" else "(input_text)"),
]
Parts = Annotated[list[Part], FailFast(), BeforeValidator(_as_parts)]
Texts = Annotated[list[InputText], FailFast(), BeforeValidator(_as_parts)]


class InputMessage(Strict):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Parts


class FunctionCall(Strict):
    """A tool call that the model made earlier."""

    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str = Field(description="A JSON object, as text.")


class FunctionCallOutput(Strict):
    """What a tool returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Texts


class ReasoningItem(Strict):
    """What the model thought earlier: its own words, or else the summary."""

    type: Literal["reasoning"]
    content: Texts = Field(default_factory=list)
    summary: Texts = Field(default_factory=list)


_ITEMS: Mapping[str, type[Strict]] = {
    "message": InputMessage,
    "function_call": FunctionCall,
    "function_call_output": FunctionCallOutput,
    "reasoning": ReasoningItem,
}
Item = Annotated[
    Annotated[InputMessage, Tag("(message)")]
    | Annotated[FunctionCall, Tag("(function_call)")]
    | Annotated[FunctionCallOutput, Tag("(function_call_output)")]
    | Annotated[ReasoningItem, Tag("(reasoning)")],
    Discriminator(lambda item: kind_of(item, "message")),
]


def as_items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


_TEXT = place_of(InputText, "input.content", ITEM_PART)
_CONTENT = Place(kinds={kind: place_of(model, "input.content", ITEM_PART) for kind, model in _PARTS.items()})
_OUTPUT = Place(kinds=dict.fromkeys(("input_text", "output_text", "text"), _TEXT))
_INSIDE = {
    "message": {"content": _CONTENT},
    "function_call_output": {"output": _OUTPUT},
    "reasoning": {"content": _TEXT, "summary": _TEXT},
}
ITEM_PLACE = Place(kinds={kind: place_of(model, "input", ITEM, _INSIDE.get(kind)) for kind, model in _ITEMS.items()})
