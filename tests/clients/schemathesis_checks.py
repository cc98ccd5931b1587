"""A check for schemathesis: what fits the schema is refused only if the request itself shows why.

Loaded by SCHEMATHESIS_HOOKS, see schemathesis.sh.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import schemathesis

Body = Mapping[str, Any]


def _most(body: Body) -> int | None:
    """The most tokens that the body asks for."""
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    limits = [body[name] for name in names if body.get(name) is not None]
    return min(limits, default=16 if "prompt" in body else None)


def _formed(body: Body) -> bool:
    """Whether the body asks for an answer of some form."""
    of_responses = (body.get("text") or {}).get("format") if isinstance(body.get("text"), dict) else None
    fields = ("response_format", "structured_outputs", "tools", "output_config")
    return of_responses is not None or any(body.get(name) is not None for name in fields)


def _last_role(body: Body) -> str:
    return str(body["messages"][-1].get("role"))


def _refers(body: Body) -> bool:
    """Whether messages speak of calls: their ids and arguments must fit together."""
    return any(message.get("tool_calls") or message.get("role") == "tool" for message in body["messages"])


def _not_all_text(body: Body) -> bool:
    """Whether items or blocks include calls, results or thoughts, whose roles and ids must fit together."""
    items = body.get("input") if isinstance(body.get("input"), list) else body.get("messages")
    contents = [item.get("content") for item in items or () if isinstance(item, dict)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    plain = ("message", "text", "input_text", "output_text", "refusal")
    return not items or any(one.get("type", "text") not in plain for one in (*items, *blocks) if isinstance(one, dict))


def _ends_with_assistant(body: Body) -> bool:
    items = body.get("messages") or body.get("input")
    last = items[-1] if isinstance(items, list) and items else {}
    return isinstance(last, dict) and last.get("role") == "assistant"


REASONS: dict[str, Callable[[Body], bool]] = {
    "stream_options": lambda body: not body.get("stream"),
    "min_tokens": lambda body: body["min_tokens"] > (_most(body) or 2**31) or _formed(body),
    "ignore_eos": lambda body: body["ignore_eos"] and _formed(body),
    "max_tokens": lambda body: body["max_tokens"] == 0 and not body.get("echo"),
    "max_completion_tokens": lambda body: body["max_completion_tokens"] != body["max_tokens"],
    "n": lambda body: body["n"] > 1 and isinstance(body["prompt"], list),
    "best_of": lambda body: body["best_of"] != (body.get("n") or 1),
    "top_logprobs": lambda body: body["top_logprobs"] > 0 and not body.get("logprobs"),
    "response_format": lambda body: body["response_format"] is not None,
    "structured_outputs": lambda body: body["structured_outputs"] is not None,
    "tools": lambda body: bool(body["tools"]),
    "tool_choice": lambda body: body["tool_choice"] not in (None, "none", "auto"),
    "messages": lambda body: _last_role(body) == "assistant" or _refers(body) or _not_all_text(body),
    "input": lambda body: _not_all_text(body) or _ends_with_assistant(body),
    "text": lambda body: body["text"].get("format") is not None,
    "reasoning": lambda body: body["reasoning"].get("effort") is not None,
    "output_config": lambda body: body["output_config"] is not None,
    "thinking": lambda body: body["thinking"] is not None,
    "documents": lambda body: bool(body["documents"]),
    "chat_template_kwargs": lambda body: bool(body["chat_template_kwargs"]),
    "reasoning_effort": lambda body: body["reasoning_effort"] is not None,
    "continue_final_message": lambda body: body.get("continue_final_message") or _ends_with_assistant(body),
    "add_generation_prompt": lambda body: body["add_generation_prompt"] is not None,
}
"""Rules between fields, and rules that only a compiler or a chat template can check, by the field that the error names.
"""


@schemathesis.check
def refused_for_a_reason(ctx: Any, response: Any, case: Any) -> None:
    """400 to what fits the schema, and 504 at all, must have a reason in the request."""
    body = case.body if isinstance(case.body, dict) else {}
    if response.status_code == 504:
        assert body.get("deadline_ms") is not None, "504 without a deadline"
    if response.status_code != 400 or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    error = response.json()["error"]
    if error.get("code") == "context_length_exceeded" or re.search("the context (of|is)", error["message"]):
        return
    # Anthropic's form has no names but in its messages, which begin with them.
    named = error["param"] if "param" in error else re.split("[: ]", error["message"])[0]
    field = (named or "").partition(".")[0].partition("[")[0]
    reason = REASONS.get(field)
    assert reason is not None and reason(body), f"refused without a reason: {error}"
