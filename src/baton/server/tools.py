"""Tools that a request offers: how the model sees them, and what form the answer then has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from pydantic import Field

from baton.core.constraint import CALLS, NAME, OutputFormat
from baton.core.errors import InvalidValue, Unsupported
from baton.engine.client import Tokenizer
from baton.parsing.deltas import Parser
from baton.parsing.styles import Style, style_of
from baton.server.fields import Strict
from baton.server.relaxed import relaxed

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


class FunctionOffered(Strict):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema of an object.")
    strict: bool | None = Field(None, description="Arguments fit the schema whenever the tool is called.")


class ToolOffered(Strict):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionOffered


class FunctionNamed(Strict):
    """The name of a function."""

    name: str


class ToolNamed(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionNamed


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that an answer may call. `form`: what it must look like; None if it is free.

    `visible_special_tokens`: special tokens that the parser must see in the text. `forced`: the answer is nothing but
    calls, of the tool `only` if there is but one. `relaxed`: keywords of schemas that the form does not enforce.
    """

    offered: Sequence[ToolOffered]
    style: Style
    form: OutputFormat | None
    visible_special_tokens: frozenset[int]
    only: str | None = None
    forced: bool = False
    relaxed: tuple[str, ...] = ()

    def parser(self) -> Parser:
        schemas = {tool.function.name: tool.function.parameters or _NO_ARGUMENTS for tool in self.offered}
        return self.style.parser(schemas, forced=self.forced, only=self.only)

    @property
    def described(self) -> list[dict[str, Any]]:
        """The tools as chat templates take them."""
        return [{"type": "function", "function": _described(tool.function)} for tool in self.offered]


def chosen(
    offered: Sequence[ToolOffered], choice: str | ToolNamed | None, many: bool | None, tokenizer: Tokenizer
) -> Tools | None:
    """Returns the tools that the model is told of; None if there are none, or if none is to be called.

    Raises InvalidValue, and Unsupported if this model is not known to call tools.
    """
    _check(offered, choice)
    if not offered or choice == "none":
        return None
    style = style_of(tokenizer.chat_template(tools=True) or "", tokenizer.response_template)
    if style is None:
        message = "tools are not honoured: this model's chat template has no form of tool calls that is known here"
        raise Unsupported(message, param="tools")
    tokens_of_tags = {tag: tokenizer.token(tag) for tag in style.tags}
    tokens = {tag: token for tag, token in tokens_of_tags.items() if token is not None}
    several = many is not False
    forced = choice is not None and choice != "auto"
    # A free answer that breaks no promise needs no form.
    bound = forced or not several or any(tool.function.strict for tool in offered)
    called = [
        tool for tool in offered if not isinstance(choice, ToolNamed) or tool.function.name == choice.function.name
    ]
    if bound and not style.forcible:
        _refuse(style, choice, many)
    left_out: set[str] = set()
    form = _form(called, style, tokens, left_out, several=several, forced=forced) if bound else None
    visible_special_tokens = frozenset(token for tag, token in tokens.items() if tag in tokenizer.special)
    only = called[0].function.name if forced and len(called) == 1 else None
    return Tools(offered, style, form, visible_special_tokens, only, forced, tuple(sorted(left_out)))


def _check(offered: Sequence[ToolOffered], choice: str | ToolNamed | None) -> None:
    names: set[str] = set()
    for at, tool in enumerate(offered):
        where, name, parameters = f"tools[{at}].function", tool.function.name, tool.function.parameters or {}
        if not NAME.fullmatch(name) or name in names:
            why = "is there twice" if name in names else "must be 1 to 64 letters, digits, _ or -"
            raise InvalidValue(f"{where}.name {name[:64]!r} {why}", param=f"{where}.name")
        if parameters.get("type", "object") != "object":
            raise InvalidValue(f"{where}.parameters must be the schema of an object", param=f"{where}.parameters")
        names.add(name)
    if not offered and (isinstance(choice, ToolNamed) or choice == "required"):
        raise InvalidValue("tool_choice is only for tools", param="tool_choice")
    if isinstance(choice, ToolNamed) and choice.function.name not in names:
        raise InvalidValue(f"tool_choice: there is no tool {choice.function.name[:64]!r}", param="tool_choice")


def _form(
    tools: Sequence[ToolOffered],
    style: Style,
    tokens: dict[str, int],
    left_out: set[str],
    *,
    several: bool,
    forced: bool,
) -> OutputFormat:
    """`left_out` gets the keywords that are dropped for tools that are not strict."""
    spec = {
        "frame": style.frame,
        "opening": style.opening,
        "closing": style.closing,
        "arguments": style.arguments,
        "tokens": tokens,
        "several": several,
        "forced": forced,
        "tools": [
            {
                "name": one.name,
                "parameters": _described(one)["parameters"]
                if one.strict
                else relaxed(_described(one)["parameters"], left_out),
            }
            for one in (tool.function for tool in tools)
        ],
    }
    return OutputFormat(CALLS, json.dumps(spec), "tools")


def _refuse(style: Style, choice: str | ToolNamed | None, many: bool | None) -> NoReturn:
    """Says which promise cannot be kept for a model whose calls cannot have a form."""
    param = "tool_choice" if choice not in (None, "auto") else "parallel_tool_calls" if many is False else "tools"
    what = {"tools": "strict", "parallel_tool_calls": "parallel_tool_calls false"}.get(param, "a forced call")
    raise Unsupported(f"{what} is not honoured: calls in this model's style ({style.name}) have no form", param=param)


def _described(function: FunctionOffered) -> dict[str, Any]:
    about = {"description": function.description} if function.description is not None else {}
    return {"name": function.name, **about, "parameters": function.parameters or _NO_ARGUMENTS}
