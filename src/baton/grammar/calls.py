"""Grammars of answers that call tools, in llguidance's Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from baton.core.constraint import literal
from baton.grammar.closed import closed
from baton.grammar.framed import framed_rules
from baton.grammar.schema import check_schema, without_remarks

_ANY = "/(.|\\n)*/"
# Text that does not begin like a call without a tag.
_NOT_BARE = "/(\\s*[^{\\s](.|\\n)*)?/"


def calls_grammar(spec: Mapping[str, Any], options: Mapping[str, Any], param: str) -> str:
    """Returns the grammar of an answer that calls tools.

    `spec`: tags (`opening`, `closing`) and the name of the `arguments`; `tokens`: ids of tags that are one token;
    `tools` with names and `parameters`; `several` calls may come; `forced`: nothing but calls. If there is a `frame`,
    it says what surrounds calls, see `framed.py`.

    Raises InvalidValue for a tool's schema that cannot be honoured.
    """
    for tool in spec["tools"]:
        check_schema(tool["parameters"], param)
    if spec.get("frame"):
        return "\n".join([*framed_rules(spec, options, param), ""])
    schema = {"x-guidance": dict(options), "anyOf": [_call(at, tool, spec) for at, tool in enumerate(spec["tools"])]}
    rules = _tagged(spec) if spec["closing"] else _bare(spec)
    return "\n".join([*rules, f"body: %json {json.dumps(schema)}", ""])


def _call(at: int, tool: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    # With an id of its own a schema's references are to itself, wherever it is placed.
    arguments = {"$id": f"urn:tool:{at}", "type": "object", **closed(without_remarks(tool["parameters"]))}
    return {
        "type": "object",
        "properties": {"name": {"const": tool["name"]}, spec["arguments"]: arguments},
        "required": ["name", spec["arguments"]],
        "additionalProperties": False,
    }


def _tagged(spec: Mapping[str, Any]) -> list[str]:
    opening, closing = _tag("opening", spec), _tag("closing", spec)
    inside = f'"\\n" body "\\n" {closing}'
    if spec["forced"]:
        more = ' ("\\n" call)*' if spec["several"] else ""
        return [f"start: call{more}", f"call: {opening} {inside}"]
    if spec["opening"] in spec["tokens"]:
        several = "(TEXT call)* TEXT" if spec["several"] else "TEXT call?"
        return [f"start: {several}", f"call: {opening} {inside}", f"TEXT: {_ANY} & {_without(spec['opening'])}"]
    # A tag of several tokens begins a call as soon as it is complete.
    several = "call* rest" if spec["several"] else "call | rest"
    return [f"start: {several}", f"call: head {inside}", f"head[lazy]: TEXT {opening}", "rest: TEXT", f"TEXT: {_ANY}"]


def _bare(spec: Mapping[str, Any]) -> list[str]:
    call = f"{_tag('opening', spec)}? body"
    if spec["forced"]:
        return [f"start: {call}"]
    return ["start: TEXT | call", f"call: {call}", f"TEXT: {_NOT_BARE} & {_without(spec['opening'])}"]


def _tag(which: str, spec: Mapping[str, Any]) -> str:
    name = spec[which]
    return f"<[{spec['tokens'][name]}]>" if name in spec["tokens"] else literal(name)


def _without(tag: str) -> str:
    """Texts without a tag in them, not even in letters if it is one token."""
    return f"~/(.|\\n)*{re.escape(tag)}(.|\\n)*/"
