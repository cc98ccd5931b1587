"""What someone asked: prompt tokens, sampling parameters, priority, deadline. It never changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from baton.errors import InvalidValue

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 256
MAX_LOGIT_BIAS_ENTRIES = 300
MAX_N = 16
MAX_USER_CHARACTERS = 256
MAX_LOGPROBS = 20


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
    are the model's: before temperature, penalties, bias and filters.
    Raises InvalidValue (with the field's name) for a value out of its limits.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _as_tuple(self.stop, str, "stop"))
        object.__setattr__(self, "stop_token_ids", _as_tuple(self.stop_token_ids, int, "stop_token_ids"))
        object.__setattr__(self, "top_k", 0 if self.top_k == -1 else self.top_k)
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", MappingProxyType(_as_bias(self.logit_bias)))
        self._check_numbers()
        self._check_stops()

    def _check_numbers(self) -> None:
        _within("n", self.n, 1, MAX_N, whole=True)
        _within("temperature", self.temperature, 0, 2)
        _within("top_p", self.top_p, 0, 1, above=True)
        _within("top_k", self.top_k, 0, 2**31 - 1, whole=True)
        _within("min_p", self.min_p, 0, 1)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        _within("repetition_penalty", self.repetition_penalty, 0, 10, above=True)
        _within("min_tokens", self.min_tokens, 0, 2**31 - 1, whole=True)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 1, 2**31 - 1, whole=True)
            if self.min_tokens > self.max_tokens:
                message = f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}"
                raise InvalidValue(message, param="min_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 0, MAX_LOGPROBS, whole=True)
        if self.seed is not None:
            _within("seed", self.seed, -(2**63), 2**63 - 1, whole=True)

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidValue(f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}", param="stop")
        for string in self.stop:
            if not 1 <= len(string) <= MAX_STOP_CHARACTERS:
                message = f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters, got {len(string)}"
                raise InvalidValue(message, param="stop")
        bias = self.logit_bias or {}
        if len(bias) > MAX_LOGIT_BIAS_ENTRIES:
            message = f"logit_bias takes at most {MAX_LOGIT_BIAS_ENTRIES} entries, got {len(bias)}"
            raise InvalidValue(message, param="logit_bias")
        for token, value in bias.items():
            _within("logit_bias", value, -100, 100)
            _within("logit_bias", token, 0, 2**31 - 1, whole=True)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class Terms:
    """When a prompt is wanted and by whom; nothing special by default.

    `priority`: lower runs first. `deadline_ms` from its arrival it is given up, if it is not done. `user`: who asked,
    or ""; at most 256 characters. Raises InvalidValue.
    """

    priority: int = 0
    deadline_ms: int | None = None
    user: str = ""

    def __post_init__(self) -> None:
        _within("priority", self.priority, -(2**31), 2**31 - 1, whole=True)
        if self.deadline_ms is not None:
            _within("deadline_ms", self.deadline_ms, 1, 2**31 - 1, whole=True)
        if not isinstance(self.user, str) or len(self.user) > MAX_USER_CHARACTERS:
            raise InvalidValue(f"user must be a text of at most {MAX_USER_CHARACTERS} characters", param="user")


@dataclass(frozen=True, slots=True)
class Query:
    """One prompt to be continued once.

    `prompt` are token ids, at least one. `seed` is resolved (never None), so that a draw is a function of the query.
    `limit_tokens` is the most tokens that may be generated, resolved from `params.max_tokens` and the context.
    `priority`: lower runs first. `deadline` is a time on the engine's clock, or None. `user`: who asked, or "";
    policies may share the rows between users. `choice_of`: where several queries are choices of one prompt and may
    share its computation, the id of the first of them, its own for that one; else "".
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
    choice_of: str = ""

    @property
    def pause_at(self) -> int:
        """After so many tokens of its prompt it pauses, so that other choices can begin there; 0: it does not."""
        return len(self.prompt) - 1 if self.choice_of == self.id else 0


def _within(name: str, value: float, low: float, high: float, *, whole: bool = False, above: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        kind = "a whole number" if whole else "a finite number"
        raise InvalidValue(f"{name} must be {kind}, got {value!r}", param=name)
    if value > high or value < low or (above and value == low):
        bounds = f"above {low} and at most {high}" if above else f"between {low} and {high}"
        raise InvalidValue(f"{name} must be {bounds}, got {value!r}", param=name)


def _as_bias(value: Mapping[int, float]) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise InvalidValue("logit_bias must hold a number by token id", param="logit_bias") from None


def _as_tuple(value: object, kind: type, name: str) -> tuple[object, ...]:
    """A single item, None or any iterable, as a tuple of `kind`."""
    if value is None:
        return ()
    items = (value,) if isinstance(value, kind) else value
    if not isinstance(items, Iterable):
        raise InvalidValue(f"{name} must be a list, got {value!r}", param=name)
    found = tuple(items)
    if any(not isinstance(item, kind) or isinstance(item, bool) for item in found):
        raise InvalidValue(f"{name} must hold only {kind.__name__} values, got {value!r}", param=name)
    return found


NO_TERMS = Terms()
