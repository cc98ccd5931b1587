"""A check of our own for schemathesis: what fits the schema is refused only where the request itself shows why.

Loaded by SCHEMATHESIS_HOOKS, see schemathesis.sh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import schemathesis

Body = Mapping[str, Any]


def _most(body: Body) -> int | None:
    """The most tokens that the body asks for."""
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    return min(limits, default=None if "messages" in body else 16)


def _formed(body: Body) -> bool:
    """Whether the body asks for an answer of some form."""
    return any(body.get(name) is not None for name in ("response_format", "structured_outputs", "tools"))


def _last_role(body: Body) -> str:
    return str(body["messages"][-1].get("role"))


def _refers(body: Body) -> bool:
    """Whether messages speak of calls: their ids and arguments must fit together."""
    return any(message.get("tool_calls") or message.get("role") == "tool" for message in body["messages"])


REASONS: dict[str, Callable[[Body], bool]] = {
    "stream_options": lambda body: not body.get("stream"),
    "min_tokens": lambda body: body["min_tokens"] > (_most(body) or 2**31) or _formed(body),
    "ignore_eos": lambda body: body["ignore_eos"] and _formed(body),
    "max_tokens": lambda body: body["max_tokens"] == 0 and not body.get("echo"),
    "max_completion_tokens": lambda body: body["max_completion_tokens"] != body["max_tokens"],
    "n": lambda body: body["n"] > 1 and isinstance(body["prompt"], list),
    "top_logprobs": lambda body: body["top_logprobs"] > 0 and not body.get("logprobs"),
    "response_format": lambda body: body["response_format"] is not None,
    "structured_outputs": lambda body: body["structured_outputs"] is not None,
    "tools": lambda body: bool(body["tools"]),
    "tool_choice": lambda body: body["tool_choice"] not in (None, "none", "auto"),
    "parallel_tool_calls": lambda body: not body.get("tools"),
    "messages": lambda body: _last_role(body) == "assistant" or _refers(body),
}
"""Rules between fields, and what only a compiler or a chat template can tell, by the field that the error names."""


@schemathesis.check
def refused_for_a_reason(ctx: Any, response: Any, case: Any) -> None:
    """400 to what fits the schema, and 504 at all, must have a reason in the request."""
    body = case.body if isinstance(case.body, dict) else {}
    if response.status_code == 504:
        assert body.get("deadline_ms") is not None, "504 without a deadline"
    if response.status_code != 400 or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    error = response.json()["error"]
    if error["code"] == "context_length_exceeded":
        return
    field = (error["param"] or "").partition(".")[0].partition("[")[0]
    reason = REASONS.get(field)
    assert reason is not None and reason(body), f"refused without a reason: {error}"
