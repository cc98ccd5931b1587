"""A double of the engine's loop that does what a test says, with the real client and a tokenizer of single letters."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI

from baton.core.clock import monotonic
from baton.core.constraint import Constraint, OutputFormat
from baton.core.errors import InvalidValue, ShuttingDown
from baton.core.events import Slots, TokenLogprobs, Update, Usage
from baton.core.limits import Limits
from baton.core.query import Query
from baton.core.settings import Settings
from baton.core.template_options import NO_TEMPLATE_OPTIONS, TemplateOptions
from baton.engine.client import Client, Stats
from baton.server import app as server_app

MODEL = "lab/letters"
CONTEXT = 64
Deliver = Callable[[list[Update]], None]


class Letters:
    """One token per character; token 0 is the end."""

    vocabulary = 256
    kind = "Letters"
    roles = {"eos_token": "<end>"}
    special = {"<end>": 0}
    template = "{{ messages }}"
    added: frozenset[str] = frozenset()
    response_template: dict[str, Any] | None = None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [ord(letter) % 256 for letter in text]

    @property
    def template_variables(self) -> frozenset[str]:
        return frozenset(re.findall(r"{{ (\w+) }}", self.template))

    def chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] = (),
        options: TemplateOptions = NO_TEMPLATE_OPTIONS,
        *,
        any_length: bool = False,
    ) -> list[int]:
        self.options = options
        if messages[-1]["role"] == "assistant" and not options.continue_final:
            raise InvalidValue("the last message must not be the assistant's", param="messages")
        self.tools, self.messages = list(tools), list(messages)
        return self.encode("".join(f"<{m['role']}>{m.get('content')}" for m in messages))

    def chat_template(self, *, tools: bool) -> str | None:
        return self.template

    def token(self, name: str) -> int | None:
        return None

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(token) for token in token_ids if token or not skip_special_tokens)

    def piece(self, token_id: int) -> bytes:
        """Two tokens are the halves of an é."""
        return {0: b"<end>", 1: b"\xc3", 2: b"\xa9"}.get(token_id, chr(token_id).encode())


class ScriptedLoop:
    """Answers each query with `answer`, letter by letter; a test sets what goes wrong.

    `held`: queries get no update until `release`, except a first one of `opening`; `refuse`: raised by submit;
    `fail_after`: letters before an error, which is the client's own if `infeasible`; `cached`: prompt tokens that each
    query did not compute, in their order; `stopped_by`: the stop string that ends each answer.
    """

    def __init__(self, answer: str = "hello") -> None:
        self.answer = answer
        self.held = False
        self.opening = ""
        self.refuse: Exception | None = None
        self.fail_after: int | None = None
        self.infeasible = False
        self.cached: list[int] = []
        self.defaults: dict[str, float] = {}
        self.stopped_by: str | None = None
        self.reason: str | None = None
        self.tokenizer = Letters()
        self.context = CONTEXT
        self.compiler: Forms | None = Forms()
        self.live: dict[str, tuple[Query, Deliver]] = {}
        self.queries: list[Query] = []
        self.cancelled: list[str] = []
        self.came = threading.Event()
        self.cancels = threading.Event()
        self.ended = threading.Event()
        self.served: list[tuple[FastAPI, Client]] = []
        """What stands on this loop and ends with it."""

    def submit(self, queries: Sequence[Query], deliver: Deliver, *, admitted: bool = False) -> None:
        """`admitted`: a front asks, which has refused what is to be refused."""
        if self.refuse is not None and not admitted:
            raise self.refuse
        self.queries += queries
        self.live |= {query.id: (query, deliver) for query in queries}
        self.came.set()
        if self.opening:
            self.say(self.opening)
        if not self.held:
            self.release()

    def compile(self, form: OutputFormat) -> Constraint:
        """What an engine behind a front makes of a form; not among the forms that clients compile."""
        return Free()

    def check_room(self, count: int) -> None:
        if self.refuse is not None:
            raise self.refuse

    def say(self, *texts: str) -> None:
        """One update of each text to each live query, and no end."""
        for query, deliver in list(self.live.values()):
            for text in texts:
                deliver([Update(query.id, (1,), text)])

    def release(self) -> None:
        """All live queries get their answer, letters of different queries in turns, and end."""
        live, self.live = list(self.live.values()), {}
        for letters in itertools.zip_longest(*(self._updates(query) for query, _ in live)):
            for (_, deliver), update in zip(live, letters, strict=True):
                if update is not None:
                    deliver([update])

    def give(self, query_ids: Sequence[str] | None = None) -> Future[Any]:
        """The queries themselves stand for their segments."""
        given: Future[Any] = Future()
        names = [name for name in (query_ids or self.live) if name in self.live]
        leaving = [self.live.pop(name) for name in names]
        given.set_result([SimpleNamespace(query=query) for query, _ in leaving])
        for query, deliver in leaving:
            deliver([Update(query.id, finish_reason="moved", usage=usage_of(query, 0))])
        return given

    def resume(self, segments: Sequence[Any], deliver: Deliver) -> None:
        self.submit([segment.query for segment in segments], deliver)

    def stop_admitting(self) -> None:
        self.refuse = ShuttingDown("the server is shutting down")

    def cancel(self, query_ids: Sequence[str]) -> None:
        self.cancelled += query_ids
        for query_id in query_ids:
            self.live.pop(query_id, None)
        self.cancels.set()

    def stats(self) -> Stats:
        return Stats(
            running=len(self.live),
            waiting=2,
            prefilling=1,
            ready=0,
            preempted=0,
            rows=8,
            rows_occupied=len(self.live),
            columns=64,
            kv_bytes_used=1024,
            kv_bytes_budget=4096,
            iterations=7,
            prompt_tokens=11,
            generated_tokens=13,
            insertions=3,
            preemptions=0,
            slots=Slots(useful=30, padding=10),
            outcomes={"finished": 3},
            last_iteration_age_seconds=0.5,
        )

    def stuck_seconds(self) -> float:
        return 0.0

    def not_ready(self) -> str | None:
        return self.reason

    def drain(self, timeout_seconds: float) -> bool:
        if not self.live or self.ended.wait(timeout_seconds):
            return True
        for query, deliver in list(self.live.values()):
            deliver([Update(query.id, finish_reason="cancelled", usage=usage_of(query, 0))])
        self.live.clear()
        self.ended.set()
        return False

    def close(self) -> None:
        self.ended.set()
        served, self.served = self.served, []
        for app, client in served:
            app.state.close()
            client.close()

    def _updates(self, query: Query) -> list[Update]:
        text = self.answer[: query.limit_tokens]
        said = [Update(query.id, (ord(text[at]),), text[at], **_told(query, text, at)) for at in range(len(text))]
        if self.fail_after is not None:
            failed = Update(query.id, (), "", "error", "the row had NaN logits", infeasible=self.infeasible)
            return [*said[: self.fail_after], failed]
        reason = "length" if len(text) < len(self.answer) else "stop"
        at = self.queries.index(query)
        usage = usage_of(query, len(text), self.cached[at] if self.cached else 0)
        stopped_by = self.stopped_by if reason == "stop" else None
        return [*said[:-1], replace(said[-1], finish_reason=reason, usage=usage, stopped_by=stopped_by)]


def logprobs_of(token: int, best: int) -> TokenLogprobs:
    """Each token is the second best of all, after the letter before it."""
    return TokenLogprobs(token, -1.5, 2, (((token - 1) % 256, -0.5), (token, -1.5), ((token + 1) % 256, -2.5))[:best])


def _told(query: Query, text: str, at: int) -> dict[str, Any]:
    """What the update with letter `at` of the answer says beside it."""
    answer, prompt = query.params.logprobs, query.params.prompt_logprobs
    logprobs: dict[str, Any] = {}
    if prompt is not None and at == 0:
        logprobs["prompt_logprobs"] = tuple(logprobs_of(token, prompt) for token in query.prompt[1:])
    if answer is not None:
        logprobs["logprobs"] = (logprobs_of(ord(text[at]), answer),)
    return logprobs


def usage_of(query: Query, generated: int, cached: int = 0) -> Usage:
    return Usage(
        prompt_tokens=len(query.prompt),
        generated_tokens=generated,
        useful_slots=30,
        idle_slots=10,
        queue_seconds=0.5,
        prefill_seconds=0.25,
        decode_seconds=1.5,
        first_token_seconds=0.75,
        preemptions=1,
        cached_tokens=cached,
    )


def usage_body(prompt: int, completion: int, cached: int = 0) -> dict[str, object]:
    """As in answers."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Forms:
    """A compiler that keeps the forms it is given."""

    def __init__(self) -> None:
        self.forms: list[OutputFormat] = []

    def compile(self, form: OutputFormat) -> Constraint:
        self.forms.append(form)
        return Free()

    def prepare(self) -> None: ...

    def close(self) -> None: ...


class Free:
    """A constraint that allows everything."""

    def start(self) -> Free:
        return self

    def allowed(self, generated: Sequence[int]) -> bytes:
        return b"\xff" * 32


def client_of(loop: ScriptedLoop, limits: Limits | None = None, **settings: Any) -> Client:
    made = Settings(
        policy="baton",
        max_rows=8,
        max_model_len=loop.context,
        kv_bytes=4096,
        prefill_chunk=None,
        max_stall_seconds=0.2,
        max_waiting=256,
        seed=0,
        limits=limits or Limits(),
        **settings,
    )
    return Client(
        model_name=MODEL,
        settings=made,
        tokenizer=loop.tokenizer,
        loop=loop,
        clock=monotonic,
        compiler=loop.compiler,
        defaults=loop.defaults,
    )


def app_of(
    loop: ScriptedLoop,
    limits: Limits | None = None,
    *,
    client: Client | None = None,
    reasoning: bool = True,
    **more: Any,
) -> FastAPI:
    """A server over the loop; its threads end with the loop."""
    client = client or client_of(loop, limits, reasoning=reasoning)
    # By its module, in which `through_front.py` puts another one.
    app = server_app.create_app(client, render_metrics=lambda: (b"up 1\n", "text/plain"), version="9.9", **more)
    loop.served.append((app, client))
    return app
