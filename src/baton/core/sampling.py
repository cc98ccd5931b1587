"""What a sampling field is: one line in `SamplingParams`, from which checks, HTTP, pages and documents follow."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from baton.core.constraint import OutputFormat, form_of
from baton.core.errors import InvalidValue, quoted
from baton.core.named_fields import NamedFields

MOST = 2**31 - 1
"""The largest number in any request; `limits.py` has what may be asked for."""


class Group(StrEnum):
    """Where an input for a sampling field is shown."""

    GENERAL = "general"
    FILTER = "filter"
    PENALTY = "penalty"


@dataclass(frozen=True, slots=True)
class SamplingField:
    """One sampling field.

    Attributes:
        kind: Its type without None. Only int and float have bounds.
        about: One sentence for people.
        low: The least value; if `above`, values must be more than it.
        high: The greatest value.
        limit: The field of `Limits` that bounds it further, in both directions if `low` is negative; "" for none.
        group: Where it is shown; None if people do not set it in a conversation.
        unset: What leaving it out means, in words, if the default does not say it.
        hint: A few words beside its name on the chat page.
    """

    name: str
    kind: Any
    nullable: bool
    default: Any
    about: str
    low: float | None = None
    high: float = MOST
    above: bool = False
    limit: str = ""
    group: Group | None = None
    unset: str = ""
    hint: str = ""

    @property
    def signed(self) -> bool:
        return self.low is not None and self.low < 0

    def bounds(self, limits: Any = None) -> tuple[float, float]:
        """Returns the least and the greatest value, with what an engine's limits allow if they are given."""
        most = self.high if limits is None or not self.limit else getattr(limits, self.limit)
        return (-most if self.limit and self.signed else self.low or 0), most

    def check(self, value: Any) -> None:
        """Raises InvalidValue if the value is no number or is out of bounds."""
        if self.low is not None and not (self.nullable and value is None):
            within(self.name, value, self.low, self.high, whole=self.kind is int, above=self.above)

    def read(self, text: str) -> int | float:
        """Returns the number in a text that a person typed. Raises ValueError."""
        number: int | float = self.kind(text)
        return number


def sampled(default: Any, about: str, **kw: Any) -> Any:
    """Returns a dataclass field with its part of the table: `SamplingField` has the keywords."""
    return field(default=default, metadata={"about": about, **kw})


def table_of(params: type) -> tuple[SamplingField, ...]:
    """Returns the sampling fields of a dataclass, in its order."""
    hints = typing.get_type_hints(params)
    return tuple(
        SamplingField(known.name, *_plain(hints[known.name]), default=known.default, **known.metadata)
        for known in dataclasses.fields(params)
    )


def _plain(hint: Any) -> tuple[Any, bool]:
    """Returns a type without None, and whether it had None."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return (kinds[0], True) if isinstance(hint, types.UnionType) and len(kinds) == 1 else (hint, False)


def within(name: str, value: float, low: float, high: float, *, whole: bool = False, above: bool = False) -> None:
    """Raises InvalidValue if the value is no number or is out of bounds."""
    kinds = (int,) if whole else (int, float)
    infinite = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, kinds) or infinite:
        kind = "a whole number" if whole else "a finite number"
        raise InvalidValue(f"{name} must be {kind}, got {quoted(value)}", param=name)
    if value > high or value < low or (above and value == low):
        bounds = f"above {low} and at most {high}" if above else f"between {low} and {high}"
        raise InvalidValue(f"{name} must be {bounds}, got {quoted(value)}", param=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams(NamedFields):
    """How a query's tokens are drawn and when it ends. Names and defaults are those that vLLM's users know.

    `temperature` 0 is greedy. `top_k` 0 or -1 means all tokens. `max_tokens` None means up to the context's end. `seed`
    None draws one for the query. `logprobs` and `prompt_logprobs` ask for the log-probabilities of so many best tokens
    at each generated or prompt token, and of that token itself; 0 asks for its own alone, None for nothing. They are
    the model's: before temperature, penalties, bias, filters and form.

    `response_format` is OpenAI's: `{"type": "text"}`, `{"type": "json_object"}`, or `{"type": "json_schema",
    "json_schema": {"name": ..., "schema": {...}}}`, which is always strict. `structured_outputs` is vLLM's: one of
    `json` (a schema), `regex`, `choice` (a list of texts) and `grammar` (Lark, as llguidance writes it).

    In `LLM` and `AsyncLLM` a field that is not named has the model author's default, if there is one. Raises
    InvalidValue (with the field's name) for a value without meaning; `limits.py` has what an engine allows.
    """

    n: int = sampled(1, "Choices of one prompt; the seed of choice i is `seed` + i.", low=1, limit="max_n")
    temperature: float = sampled(
        1.0,
        "0 takes the likeliest token; so does whatever is too small for float32.",
        low=0,
        limit="max_temperature",
        group=Group.GENERAL,
        hint="0: always the likeliest",
    )
    # Filters are applied in this order, after temperature, each to what the one before it left.
    top_k: int = sampled(
        0, "Only so many of the likeliest tokens; 0 or -1: all.", low=-1, group=Group.FILTER, unset="all"
    )
    top_p: float = sampled(
        1.0,
        "Only the fewest of the likeliest tokens that have this share together.",
        low=0,
        high=1,
        above=True,
        group=Group.FILTER,
    )
    min_p: float = sampled(
        0.0, "Only tokens that are at least this share as likely as the likeliest.", low=0, high=1, group=Group.FILTER
    )
    presence_penalty: float = sampled(
        0.0,
        "Taken from the logit of each token that is in the answer already, as OpenAI does.",
        low=-MOST,
        limit="max_penalty",
        group=Group.PENALTY,
    )
    frequency_penalty: float = sampled(
        0.0,
        "Taken from a token's logit once for each time that it is in the answer already, as OpenAI does.",
        low=-MOST,
        limit="max_penalty",
        group=Group.PENALTY,
    )
    # At most a hundred times the logit: below that the best token so far would come for ever.
    repetition_penalty: float = sampled(
        1.0,
        "Divides the logit of each token that is in prompt or answer already, as in transformers.",
        low=0.01,
        high=10,
        group=Group.PENALTY,
    )
    logit_bias: Mapping[int, float] | None = sampled(None, "By token id, what is added to its logit after penalties.")
    seed: int | None = sampled(
        None,
        "The same seed gives the same answer.",
        low=-(2**63),
        high=2**63 - 1,
        group=Group.GENERAL,
        unset="random",
        hint="same seed, same answer",
    )
    max_tokens: int | None = sampled(
        16,
        "Most tokens of the answer; in chats up to the context's end.",
        low=1,
        group=Group.GENERAL,
        unset="to the context's end",
        hint="of an answer",
    )
    min_tokens: int = sampled(
        0,
        "End tokens and `stop_token_ids` cannot be drawn before, and stop strings do not stop.",
        low=0,
        group=Group.GENERAL,
        hint="of an answer",
    )
    stop: tuple[str, ...] = sampled(
        (), "Texts that end the answer; the name of a special token is met by that token, too."
    )
    stop_token_ids: tuple[int, ...] = sampled((), "Tokens that end the answer.")
    ignore_eos: bool = sampled(False, "End tokens do not end the answer.")
    logprobs: int | None = sampled(
        None,
        "Of so many likeliest tokens at each token, and of that token itself.",
        low=0,
        limit="max_logprobs",
        unset="none",
    )
    prompt_logprobs: int | None = sampled(
        None, "The same at each token of the prompt; in Python alone.", low=0, limit="max_logprobs", unset="none"
    )
    skip_special_tokens: bool = sampled(True, "Special tokens are left out of the text; in Python alone.")
    response_format: Mapping[str, Any] | None = sampled(None, "What the answer must look like, as OpenAI asks it.")
    structured_outputs: Mapping[str, Any] | None = sampled(None, "What the answer must look like, as vLLM asks it.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _as_tuple(self.stop, str, "stop"))
        object.__setattr__(self, "stop_token_ids", _as_tuple(self.stop_token_ids, int, "stop_token_ids"))
        object.__setattr__(self, "top_k", 0 if self.top_k == -1 else self.top_k)
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", MappingProxyType(_as_bias(self.logit_bias)))
        self._check_numbers()
        self._check_stops()
        self._check_form()

    def _check_numbers(self) -> None:
        for known in SAMPLING_FIELDS:
            known.check(getattr(self, known.name))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            message = f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}"
            raise InvalidValue(message, param="min_tokens")

    def _check_stops(self) -> None:
        if "" in self.stop:
            raise InvalidValue("a stop string has at least one character", param="stop")
        for token, value in (self.logit_bias or {}).items():
            within("logit_bias", value, -MOST, MOST)
            within("logit_bias", token, 0, MOST, whole=True)

    def _check_form(self) -> None:
        form = self.form
        for name in ("min_tokens", "ignore_eos"):
            if form is not None and getattr(self, name):
                raise InvalidValue(
                    f"{name} is not honoured for an answer of a form: the form says where it ends", param=name
                )

    @property
    def form(self) -> OutputFormat | None:
        """What answers must look like, if it is asked for."""
        return form_of(self.response_format, self.structured_outputs)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


SAMPLING_FIELDS = table_of(SamplingParams)
"""The one table of sampling fields: checks, HTTP fields, OpenAPI, the chat page, `/set` and docs/sampling.md."""


def _as_bias(value: Mapping[int, float]) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in value.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise InvalidValue("logit_bias must hold a number by token id", param="logit_bias") from None


def _as_tuple(value: object, kind: type, name: str) -> tuple[object, ...]:
    """A single item, None or any iterable, as a tuple of `kind`."""
    if value is None:
        return ()
    items = (value,) if isinstance(value, kind) else value
    if not isinstance(items, Iterable):
        raise InvalidValue(f"{name} must be a list, got {quoted(value)}", param=name)
    values = tuple(items)
    if any(not isinstance(item, kind) or isinstance(item, bool) for item in values):
        raise InvalidValue(f"{name} must hold only {kind.__name__} values, got {quoted(value)}", param=name)
    return values
