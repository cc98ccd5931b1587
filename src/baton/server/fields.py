"""Fields of requests in general: strict models, and the fields that are known and not honoured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from baton.core.errors import Unsupported
from baton.server.errors import from_validation

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields that are known and not honoured, with the values beside null that ask for nothing."""

MESSAGE_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
}
"""The same for the fields of a message: answers are often sent back as they came, with their nulls."""

STREAM_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "continuous_usage_stats": (False,),
    "include_obfuscation": (False,),
}


class Strict(BaseModel):
    """A JSON object whose types are not converted, and which has no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @classmethod
    def read(cls, sent: Mapping[str, object]) -> Self:
        """The request in a JSON object. Raises RequestError with the name of the first wrong field."""
        try:
            return cls.model_validate(without_neutral(sent, cls, NEUTRAL))
        except ValidationError as error:
            raise from_validation(error) from None


def without_neutral(
    sent: Mapping[str, object],
    model: type[BaseModel],
    neutral: Mapping[str, tuple[object, ...]],
    where: str = "",
) -> dict[str, object]:
    """What was sent, without nulls and neutral values of known fields. Raises Unsupported for others."""
    kept = {}
    for name, value in sent.items():
        if name in model.model_fields:
            if value is not None:
                kept[name] = value
        elif name not in neutral:
            raise Unsupported(f"unknown field {where}{name}", param=f"{where}{name}")
        elif value is not None and not any(type(value) is type(v) and value == v for v in neutral[name]):
            raise Unsupported(f"{where}{name} is not honoured: leave it out", param=f"{where}{name}")
    return kept
