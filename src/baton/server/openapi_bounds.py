"""What numbers, texts and lists of requests may be, as schemas: the limits of this server as it runs."""

from __future__ import annotations

from typing import Any

from baton.core.constraint import NAME
from baton.core.limits import Limits
from baton.core.query import MAX_SALT_CHARACTERS, MAX_USER_CHARACTERS
from baton.core.sampling import SAMPLING_FIELDS, SamplingField
from baton.engine.client import Client
from baton.parsing.styles import style_of

Schema = dict[str, Any]

_MOST = 2**31 - 1


def bounds(client: Client) -> dict[str, Schema]:
    """Bounds by field, or by model and field."""
    limits, longest = client.settings.limits, client.settings.max_model_len
    tokenizer = client.tokenizer
    offers = style_of(tokenizer.chat_template(tools=True) or "", tokenizer.response_template) is not None
    token = _whole(0, client.tokenizer.vocabulary - 1)
    tokens = _list(token, 1, longest - 1)
    text = {"type": "string", "minLength": 1}
    stop = {"type": "string", "minLength": 1, "maxLength": limits.max_stop_characters}
    return {
        "model": {"type": "string", "enum": [client.model_name]},
        **{known.name: _bounds_of(known, limits) for known in SAMPLING_FIELDS if known.low is not None},
        "best_of": {"enum": [None, 1]},
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": f"^({_up_to(client.tokenizer.vocabulary - 1)})$"},
            "additionalProperties": _number(-limits.max_bias, limits.max_bias),
            "maxProperties": limits.max_logit_bias,
        },
        "stop": {"anyOf": [stop, _list(stop, 0, limits.max_stop_strings)]},
        "stop_sequences": _list(stop, 0, limits.max_stop_strings),
        "MessagesRequest.max_tokens": _whole(1, _MOST),
        "stop_token_ids": _list(token, 0, limits.max_stop_tokens),
        "max_tokens": _whole(1, longest - 1),
        "CompletionRequest.max_tokens": _whole(0, longest - 1),
        "max_completion_tokens": _whole(1, longest - 1),
        "max_output_tokens": _whole(1, longest - 1),
        "top_logprobs": _whole(0, limits.max_logprobs),
        "priority": _whole(-(2**31), _MOST) if client.honours("priority") else {"enum": [None, 0]},
        "deadline_ms": _whole(1, _MOST),
        "user": {"anyOf": [{"type": "string", "maxLength": MAX_USER_CHARACTERS}, {"type": "object"}]},
        "cache_salt": {"type": "string", "minLength": 1, "maxLength": MAX_SALT_CHARACTERS},
        "prompt": {
            "anyOf": [text, _list(text, 1, limits.max_prompts), tokens, _list(tokens, 1, limits.max_prompts)],
        },
        "tokens": {"type": "array", "items": token},
        "FunctionOffered.name": {"type": "string", "pattern": f"^{NAME.pattern}$"},
        "FunctionOffered.parameters": {"type": "object", "properties": {"type": {"const": "object"}}},
        "tools": {"type": "array", "maxItems": limits.max_tools} if offers else {"enum": [None, []]},
        "tool_choice": {} if offers else {"enum": [None, "none", "auto"]},
        "MessagesRequest.tool_choice": {},
        "CountRequest.tool_choice": {},
    }


def _bounds_of(known: SamplingField, limits: Limits) -> Schema:
    low, high = known.bounds(limits)
    least = "exclusiveMinimum" if known.above else "minimum"
    return {"type": "integer" if known.kind is int else "number", least: low, "maximum": high}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _up_to(most: int) -> str:
    """Returns a pattern of all whole numbers from 0 to this one."""
    digits = str(most)
    patterns = [str(most), "0"]
    for length in range(1, len(digits)):
        patterns.append("[1-9]" + "[0-9]" * (length - 1))
    for at, digit in enumerate(digits):
        low = 0 if at else 1
        if int(digit) > low:
            patterns.append(f"{digits[:at]}[{low}-{int(digit) - 1}]" + "[0-9]" * (len(digits) - at - 1))
    return "|".join(patterns)


def _list(items: Schema, fewest: int, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": fewest, "maxItems": most}
