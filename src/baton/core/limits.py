"""What one request, one client and one query may take: one table, each limit a setting with a flag of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from baton.core.errors import InvalidValue
from baton.core.sampling import SAMPLING_FIELDS, SamplingParams


def setting(default: object, help: str, **kw: object) -> Any:
    """A field of the settings. `choices`, `low` and `high` bound it; `size` says that it is in bytes ("4MiB").

    `number`: a whole number, or auto. `memory`: a size, or auto. Both stay text until the model is known. `was`: its
    former name, which is also accepted until the next release.
    """
    return field(default=default, metadata={"help": help, **kw})


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes are in bytes, times in seconds. `Config` has them as asked, `Settings` as resolved."""

    max_connections: int = setting(4096, "Most connections; fewer if there are fewer file descriptors.", low=1)
    max_body_bytes: int = setting(4 * 2**20, "Most bytes of a request's body.", low=1, size=True)
    max_bodies_bytes: int = setting(
        64 * 2**20, "Most memory for bodies that are being read, all together.", low=1, size=True
    )
    max_chunks: int = setting(10_000, "Most chunks of a body that comes in chunks: each costs time.", low=1)
    max_header_bytes: int = setting(32 * 2**10, "Most bytes of a request's headers.", low=1, size=True)
    header_timeout: float = setting(20.0, "Seconds that a request's headers may take to arrive.", low=0.1)
    body_timeout: float = setting(60.0, "Seconds that a request's body may take to arrive.", low=0.1)
    keep_alive_timeout: float = setting(75.0, "Seconds that a connection may wait for its next request.", low=0.1)
    send_timeout: float = setting(60.0, "Seconds that a client may leave what it is sent unread.", low=0.1)
    max_unread_bytes: int = setting(8 * 2**20, "Most memory for what a stream's client has left.", low=1, size=True)
    max_answers_bytes: int = setting(
        256 * 2**20, "Most memory for answers that are not sent yet, all together.", low=1, size=True
    )
    max_json_depth: int = setting(64, "Deepest nesting of a body.", low=1, high=500)
    max_json_nodes: int = setting(10_000, "Most values and names in a body, numbers in lists not counted.", low=1)
    max_request_id: int = setting(128, "Most characters of x-request-id; a longer one is replaced.", low=1)
    max_prompts: int = setting(128, "Most prompts of a request.", low=1)
    max_choices: int = setting(128, "Most answers of a request: n times its prompts.", low=1)
    max_n: int = setting(16, "Most answers to a prompt.", low=1)
    max_temperature: float = setting(2.0, "Highest temperature.", low=0)
    max_penalty: float = setting(2.0, "Largest presence_penalty and frequency_penalty, either way.", low=0)
    max_stop_strings: int = setting(4, "Most stop strings.", low=1)
    max_stop_characters: int = setting(256, "Most characters of a stop string.", low=1)
    max_stop_tokens: int = setting(128, "Most stop_token_ids.", low=1)
    max_logprobs: int = setting(20, "Most log-probabilities at a token.", low=0)
    max_logit_bias: int = setting(300, "Most entries of logit_bias.", low=0)
    max_bias: float = setting(100.0, "Largest value in logit_bias, either way.", low=0)
    max_tools: int = setting(128, "Most tools of a request.", low=1)
    max_grammar_bytes: int = setting(128 * 2**10, "Most bytes of a schema or grammar.", low=1, size=True)
    grammar_timeout: float = setting(5.0, "Seconds that compiling a schema or grammar may take.", low=0.01)
    max_compiling: int = setting(16, "Most schemas and grammars in compilation; more are answered 429.", low=1)
    template_timeout: float = setting(2.0, "Seconds that a chat template may take.", low=0.01)
    max_template_bytes: int = setting(
        4 * 2**20, "Most bytes that a chat template may write or make at once.", low=1, size=True
    )
    max_waiting: int = setting(256, "Most queries that wait; more are answered 429.", low=1)
    queue_timeout: float = setting(60.0, "Seconds that a request may wait for a row.", low=0.01)
    query_timeout: float = setting(600.0, "Seconds that a request may take in all.", low=0.01)
    stream_comment: float = setting(10.0, "Seconds without news after which a stream sends a comment.", low=0.1)
    handover_bytes: int = setting(
        4 * 2**30,
        "Most bytes of the folder of --handover; keys beyond it are computed again.",
        low=1,
        size=True,
    )
    handover_memory: int = setting(
        256 * 2**20, "Most memory for answers that clients may come back for, all together.", low=1, size=True
    )
    handover_seconds: float = setting(300.0, "Seconds that an answer is kept after its end (--handover).", low=0)
    handover_grace: float = setting(
        10.0, "Seconds that an answer goes on after its client has left (--handover).", low=0
    )
    max_file_bytes: int = setting(200 * 2**20, "Most bytes of a file for a batch.", low=1, size=True)
    max_files: int = setting(1000, "Most files that are kept; further ones are refused.", low=1)
    max_batch_lines: int = setting(50_000, "Most lines of a batch.", low=1)
    max_batches: int = setting(
        1000, "Most batches that are kept, of which those that ended first go first; further ones are refused.", low=1
    )

    def hold(self, name: str, value: float, what: str, param: str | None = None) -> None:
        """Raises LimitExceeded if `value` is above the limit `name`. `what`: what the value is, for the message."""
        most = getattr(self, name)
        if value > most:
            raise LimitExceeded(exceeded(name, most, value, what), param=param)

    def check(self, params: SamplingParams) -> None:
        """Raises LimitExceeded with the field's name."""
        for known in SAMPLING_FIELDS:
            if known.limit:
                value, name = getattr(params, known.name) or 0, known.name
                self.hold(known.limit, abs(value), f"{name} either way" if known.signed else name, name)
        self.hold("max_stop_strings", len(params.stop), "the number of stop strings", "stop")
        for string in params.stop:
            self.hold("max_stop_characters", len(string), "the length of a stop string", "stop")
        self.hold("max_stop_tokens", len(params.stop_token_ids), "the number of stop_token_ids", "stop_token_ids")
        bias = params.logit_bias or {}
        self.hold("max_logit_bias", len(bias), "the number of entries of logit_bias", "logit_bias")
        for value in bias.values():
            self.hold("max_bias", abs(value), "a logit_bias either way", "logit_bias")


class LimitExceeded(InvalidValue):
    """More than a limit allows; the message has the limit, the value and the flag."""


def exceeded(name: str, most: float, value: float, what: str) -> str:
    return f"{what} is {_number(value)}, the limit is {_number(most)} ({flag_of(name)})"


class Row(NamedTuple):
    """A limit for display: its flag, its value and what it bounds."""

    flag: str
    value: Any
    meaning: str


def table(limits: Limits) -> Iterator[Row]:
    """All limits, as `baton info --limits` shows them."""
    for known in dataclasses.fields(Limits):
        yield Row(flag_of(known.name), getattr(limits, known.name), known.metadata["help"])


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
