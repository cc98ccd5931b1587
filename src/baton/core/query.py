"""What someone asked: prompt tokens, sampling parameters, priority, deadline. It never changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from baton.core.constraint import Constraint, OutputFormat, form_of
from baton.core.errors import InvalidValue, quoted

MAX_USER_CHARACTERS = 256
MAX_SALT_CHARACTERS = 256
# What numbers of requests are bound by at all; `limits.py` has what may be asked for.
_MOST = 2**31 - 1
# A hundred times the logit: below it the best of all tokens so far comes for ever.
_LEAST_REPETITION = 0.01


class State(StrEnum):
    """Where a query is in its life; the legal moves between them are in `engine/lifecycle.py`."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    READY = "ready"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def live(self) -> bool:
        """Whether the query still wants something of the engine."""
        return self in _LIVE


_LIVE = frozenset({State.WAITING, State.PREFILLING, State.READY, State.RUNNING})


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How a query's tokens are drawn and when it ends; names and defaults are those that vLLM's users know.

    `temperature` 0 is greedy. `top_k` 0 or -1 means all tokens. `max_tokens` None means up to the context's end.
    `seed` None draws one for the query. `logprobs` and `prompt_logprobs` ask for the log-probabilities of so many best
    tokens at each generated or prompt token, and of that token itself; 0 asks for its own alone, None for nothing. They
    are the model's: before temperature, penalties, bias, filters and form.
    `response_format` is OpenAI's: `{"type": "text"}`, `{"type": "json_object"}`, or `{"type": "json_schema",
    "json_schema": {"name": ..., "schema": {...}}}`, which is always strict. `structured_outputs` is vLLM's: one of
    `json` (a schema), `regex`, `choice` (a list of texts) and `grammar` (Lark, as llguidance writes it).
    Raises InvalidValue (with the field's name) for a value without meaning; what an engine allows is in `limits.py`.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    max_tokens: int | None = 16
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    skip_special_tokens: bool = True
    response_format: Mapping[str, Any] | None = None
    structured_outputs: Mapping[str, Any] | None = None

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
        _within("n", self.n, 1, _MOST, whole=True)
        _within("temperature", self.temperature, 0, _MOST)
        _within("top_p", self.top_p, 0, 1, above=True)
        _within("top_k", self.top_k, 0, _MOST, whole=True)
        _within("min_p", self.min_p, 0, 1)
        _within("presence_penalty", self.presence_penalty, -_MOST, _MOST)
        _within("frequency_penalty", self.frequency_penalty, -_MOST, _MOST)
        _within("repetition_penalty", self.repetition_penalty, _LEAST_REPETITION, 10)
        _within("min_tokens", self.min_tokens, 0, _MOST, whole=True)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 1, _MOST, whole=True)
            if self.min_tokens > self.max_tokens:
                message = f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}"
                raise InvalidValue(message, param="min_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 0, _MOST, whole=True)
        if self.seed is not None:
            _within("seed", self.seed, -(2**63), 2**63 - 1, whole=True)

    def _check_stops(self) -> None:
        if "" in self.stop:
            raise InvalidValue("a stop string has at least one character", param="stop")
        for token, value in (self.logit_bias or {}).items():
            _within("logit_bias", value, -_MOST, _MOST)
            _within("logit_bias", token, 0, _MOST, whole=True)

    def _check_form(self) -> None:
        form = self.form
        for name in ("min_tokens", "ignore_eos"):
            if form is not None and getattr(self, name):
                raise InvalidValue(f"{name} is not honoured with {form.param}: the form says where it ends", param=name)

    @property
    def form(self) -> OutputFormat | None:
        """What answers must look like, where it is asked for."""
        return form_of(self.response_format, self.structured_outputs)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """When a prompt is wanted and by whom; nothing special by default.

    `priority`: lower runs first. `deadline_ms` from its arrival it is given up, if it is not done. `user`: who asked,
    or ""; at most 256 characters. `queue_seconds` from its arrival it is given up, if nothing of it was
    computed yet, and `total_seconds` from it in any case: these are the server's limits, which no policy goes by.
    `key`: by whose key it was asked, as a digest, or "". `cache_salt`: what it begins with is stored for, and found by,
    those who send the same alone; 1 to 256 characters, None for none.
    Raises InvalidValue.
    """

    priority: int = 0
    deadline_ms: int | None = None
    user: str = ""
    queue_seconds: float | None = None
    total_seconds: float | None = None
    key: str = ""
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        _within("priority", self.priority, -(2**31), _MOST, whole=True)
        if self.deadline_ms is not None:
            _within("deadline_ms", self.deadline_ms, 1, _MOST, whole=True)
        if not isinstance(self.user, str) or len(self.user) > MAX_USER_CHARACTERS:
            raise InvalidValue(f"user must be a text of at most {MAX_USER_CHARACTERS} characters", param="user")
        salt = self.cache_salt
        if salt is not None and not (isinstance(salt, str) and 1 <= len(salt) <= MAX_SALT_CHARACTERS):
            raise InvalidValue(
                f"cache_salt must be a text of 1 to {MAX_SALT_CHARACTERS} characters", param="cache_salt"
            )


@dataclass(frozen=True, slots=True)
class Query:
    """One prompt to be continued once.

    `prompt` are token ids, at least one. `seed` is resolved (never None), so that a draw is a function of the query.
    `limit_tokens` is the most tokens that may be generated, resolved from `params.max_tokens` and the context.
    `priority`: lower runs first. `deadline` is a time on the engine's clock, or None; so are the limits `start_by`, for
    its first computation, and `end_by`. `user`: who asked, or "";
    policies may share the rows between users. `constraint`: what its tokens must be. `shown`: special tokens that its
    text has all the same. `sibling_of`: where several queries are choices of one prompt and may
    share its computation, the id of the first of them, its own for that one; else "".
    `prefix_space`: queries of one space share stored prefixes; None: with nobody.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    limit_tokens: int
    arrived: float
    priority: int = 0
    deadline: float | None = None
    user: str = ""
    sibling_of: str = ""
    prefix_space: str | None = ""
    start_by: float | None = None
    end_by: float | None = None
    constraint: Constraint | None = field(default=None, compare=False)
    shown: frozenset[int] = frozenset()

    @property
    def fork_at(self) -> int:
        """After so many tokens of its prompt it pauses, so that other choices can begin there; 0: it does not."""
        return len(self.prompt) - 1 if self.sibling_of == self.id else 0

    def overdue(self, now: float, *, begun: bool) -> str | None:
        """Why it is to be given up at this time, if it is. `begun`: something of it was computed."""
        if self.deadline is not None and self.deadline < now:
            return "the query's deadline has passed"
        took = now - self.arrived
        if self.end_by is not None and self.end_by < now:
            most = self.end_by - self.arrived
            return f"the query took {took:.1f} s, the limit is {most:g} s (--query-timeout)"
        if self.start_by is not None and self.start_by < now and not begun:
            most = self.start_by - self.arrived
            return f"the query waited {took:.1f} s for a row, the limit is {most:g} s (--queue-timeout)"
        return None

    def overdue_after(self, *, begun: bool) -> float:
        """The time up to which `overdue` answers None."""
        times = (self.deadline, self.end_by, None if begun else self.start_by)
        return min((time for time in times if time is not None), default=math.inf)


def _within(name: str, value: float, low: float, high: float, *, whole: bool = False, above: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    infinite = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, kinds) or infinite:
        kind = "a whole number" if whole else "a finite number"
        raise InvalidValue(f"{name} must be {kind}, got {quoted(value)}", param=name)
    if value > high or value < low or (above and value == low):
        bounds = f"above {low} and at most {high}" if above else f"between {low} and {high}"
        raise InvalidValue(f"{name} must be {bounds}, got {quoted(value)}", param=name)


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
    found = tuple(items)
    if any(not isinstance(item, kind) or isinstance(item, bool) for item in found):
        raise InvalidValue(f"{name} must hold only {kind.__name__} values, got {quoted(value)}", param=name)
    return found


NO_OPTIONS = RequestOptions()
