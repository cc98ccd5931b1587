"""What the engine's client needs: a tokenizer, a compiler of forms and the engine's loop; and what it reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from baton.core.constraint import Constraint, OutputFormat
from baton.core.events import Slots
from baton.core.query import Query
from baton.core.template_options import NO_TEMPLATE_OPTIONS, TemplateOptions
from baton.engine.inbox import Deliver
from baton.policy.port import NO_COSTS, Costs

if TYPE_CHECKING:  # clients of the engine import this, and need no torch
    from baton.kv.segment import KVSegment

Message = Mapping[str, Any]
"""One turn of a conversation: `role` and `content`, and whatever else a chat template knows."""
Tool = Mapping[str, Any]
"""As OpenAI writes it: `{"type": "function", "function": {"name": ..., "parameters": {...}}}`."""


class Tokenizer(Protocol):
    """What the engine's clients need of a tokenizer; its body is `model/tokenizer.py`. Safe to call from any thread."""

    vocabulary: int
    kind: str
    """The name of its class."""

    @property
    def roles(self) -> Mapping[str, str]:
        """The names of special tokens by their roles: "bos_token", "eos_token" and so on."""

    @property
    def special(self) -> Mapping[str, int]:
        """Ids of all special tokens by their names."""

    @property
    def added(self) -> frozenset[str]:
        """Names of the tokens that were added to the vocabulary, special or not."""

    @property
    def response_template(self) -> Mapping[str, Any] | None:
        """How answers are to be parsed, from the tokenizer's own files; None if they do not say."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """`special`: with the tokens that the tokenizer adds to a text by itself."""

    @property
    def template_variables(self) -> frozenset[str]:
        """The variables that the chat template reads."""

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        options: TemplateOptions = NO_TEMPLATE_OPTIONS,
        *,
        any_length: bool = False,
    ) -> list[int]:
        """The prompt of a conversation. Raises RequestError.

        It ends where the assistant's turn begins, unless `options` say otherwise. It is no longer than the context
        unless it may have `any_length`.
        """

    def chat_template(self, *, tools: bool) -> str | None:
        """The source of the chat template, with tools or without."""

    def token(self, name: str) -> int | None:
        """The one token of this name; None if there is none."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def piece(self, token_id: int) -> bytes:
        """The bytes that this token adds to a text, in UTF-8; a special token's name.

        They may end inside a character.
        """


@dataclass(frozen=True, slots=True)
class Stats:
    """The engine's state now, and what it did since its start. Bytes, tokens, seconds.

    `submitted`: queries that were admitted: the live ones and all `outcomes` together.
    """

    running: int
    waiting: int
    prefilling: int
    ready: int
    preempted: int
    rows: int
    rows_occupied: int
    columns: int
    kv_bytes_used: int
    kv_bytes_budget: int
    iterations: int
    prompt_tokens: int
    generated_tokens: int
    insertions: int
    preemptions: int
    slots: Slots
    outcomes: Mapping[str, int]
    last_iteration_age_seconds: float
    swap_bytes_used: int = 0
    swap_bytes_budget: int = 0
    prefix_bytes_used: int = 0
    prefix_cached_tokens: int = 0
    submitted: int = 0
    costs: Costs = NO_COSTS

    def numbers(self) -> dict[str, int | float]:
        """Returns all plain numbers by name, as `LLM.stats()` and the live page show them."""
        values = {known.name: getattr(self, known.name) for known in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, (int, float))}


class Compiler(Protocol):
    """Makes constraints of forms; its body is `grammar/compiler.py`. Safe to call from any thread, which then waits."""

    def compile(self, form: OutputFormat) -> Constraint:
        """Raises RequestError or QueueFull."""

    def prepare(self) -> None: ...

    def close(self) -> None: ...


class Loop(Protocol):
    """The running engine, as seen from other threads; its body is `engine/loop.py`."""

    def submit(self, queries: Sequence[Query], deliver: Deliver, *, admitted: bool = False) -> None: ...

    def check_room(self, count: int) -> None: ...

    def resume(self, segments: Sequence[KVSegment], deliver: Deliver) -> None: ...

    def give(self, query_ids: Sequence[str] | None = None) -> Future[list[KVSegment]]: ...

    def cancel(self, query_ids: Sequence[str]) -> None: ...

    def stats(self) -> Stats: ...

    def stuck_seconds(self) -> float: ...

    def not_ready(self) -> str | None: ...

    def stop_admitting(self) -> None: ...

    def drain(self, timeout_seconds: float) -> bool: ...

    def close(self) -> None: ...
