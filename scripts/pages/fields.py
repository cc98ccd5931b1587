"""The table of fields in docs/server.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from pydantic import BaseModel

from baton.server.anthropic import (
    CustomTool,
    InputTurn,
    MessagesRequest,
    TextBlock,
    Thinking,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from baton.server.field_rules import TABLES, Rule, Rules
from baton.server.messages import CalledFunction, Message, TextPart, ToolCallSent
from baton.server.responses import (
    FunctionTool,
    NamespaceTool,
    Reasoning,
    ResponsesRequest,
    ResponsesStreamOptions,
    TextConfig,
)
from baton.server.responses_items import (
    FunctionCall,
    FunctionCallOutput,
    InputMessage,
    InputText,
    ReasoningItem,
    RefusalPart,
)
from baton.server.schema import ChatRequest, CompletionRequest, StreamOptions
from baton.server.tools import FunctionOffered, ToolOffered

PLACE = re.compile(r"(<!-- fields: begin -->\n).*(<!-- fields: end -->)", re.DOTALL)
MODELS: Mapping[str, Mapping[str, tuple[type[BaseModel], ...]]] = {
    "chats and completions": {
        "": (ChatRequest, CompletionRequest),
        "messages": (Message,),
        "messages.content": (TextPart,),
        "messages.tool_calls": (ToolCallSent,),
        "messages.tool_calls.function": (CalledFunction,),
        "tools": (ToolOffered,),
        "tools.function": (FunctionOffered,),
        "stream_options": (StreamOptions,),
    },
    "responses": {
        "": (ResponsesRequest,),
        "input": (InputMessage, FunctionCall, FunctionCallOutput, ReasoningItem),
        "input.content": (InputText, RefusalPart),
        "tools": (FunctionTool, NamespaceTool),
        "reasoning": (Reasoning,),
        "stream_options": (ResponsesStreamOptions,),
        "text": (TextConfig,),
    },
    "messages": {
        "": (MessagesRequest,),
        "messages": (InputTurn,),
        "messages.content": (TextBlock, ThinkingBlock, ToolUseBlock, ToolResultBlock),
        "system": (TextBlock,),
        "tools": (CustomTool,),
        "thinking": (Thinking,),
    },
}


def text(page: str) -> str:
    lines = [line for form, table in TABLES.items() for line in _of_form(form, table)]
    return PLACE.sub(lambda match: match[1] + "\n".join(lines) + "\n" + match[2], page)


def _of_form(form: str, table: Mapping[str, Rules]) -> Iterable[str]:
    yield f"| {form}, in | honoured | taken without effect | taken with this value, else refused | refused |"
    yield "| --- | --- | --- | --- | --- |"
    for path, rules in table.items():
        honoured = {known.alias or name for model in MODELS[form][path] for name, known in model.model_fields.items()}
        rest = {name: rule for name, rule in rules.items() if name not in honoured}
        cells = (
            f"`{path}`" if path else "a request",
            _names(sorted(honoured)),
            _names(name for name, rule in sorted(rules.items()) if rule.values is None),
            _names(f"{name}: {_values(rule)}" for name, rule in sorted(rest.items()) if rule.values),
            _names(name for name, rule in sorted(rest.items()) if rule.values == ()),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _values(rule: Rule) -> str:
    distinct = [one for at, one in enumerate(rule.values or ()) if one not in (rule.values or ())[:at]]  # 1 is 1.0
    return " or ".join(json.dumps(value) for value in distinct)
