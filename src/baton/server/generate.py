"""The two generating routes: a body becomes queries, and their updates an answer."""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from baton.engine.client import Client
from baton.errors import ModelNotFound, RequestError
from baton.events import Update, Usage
from baton.server.answers import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    UsageBody,
    usage_body,
)
from baton.server.body import parse_object, read_body
from baton.server.choices import Choice, Piece
from baton.server.errors import failure
from baton.server.logprobs import ChatLogprobs, CompletionLogprobs, joined
from baton.server.schema import ChatRequest, CompletionRequest, Generation
from baton.server.stream import EventStream, Frames, until_gone


@dataclass(frozen=True, slots=True)
class Job:
    """A request made ready for the engine. Choice j of prompt i has the index i * n + j."""

    asked: Generation
    choices: list[Choice]
    model: str

    @property
    def chat(self) -> bool:
        return isinstance(self.asked, ChatRequest)

    def head(self, *, chunk: bool) -> dict[str, object]:
        name = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": name,
            "created": int(time.time()),
            "model": self.model,
        }

    def usage(self, usages: Sequence[Usage]) -> UsageBody:
        """The body of these usages, one of each choice, in their order."""
        n = self.asked.n
        prompts = (usages[first : first + n] for first in range(0, len(usages), n))
        return usage_body(prompts, baton=self.asked.baton_usage)


_SALT = secrets.token_bytes(16)


class Generating:
    """The two routes over one engine."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, self._completion_job)

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(request, self._chat_job)

    async def _answer(self, request: Request, make_job: Callable[[bytes, str], Job]) -> Response:
        body = await read_body(request)
        # Parsing, templates and tokenisers are work for a thread: other streams go on meanwhile.
        job = await anyio.to_thread.run_sync(make_job, body, _asker(request))
        if job.asked.stream:
            frames = Frames(job.head(chunk=True), chat=job.chat, usage_last=job.asked.wants_usage)
            usage = job.usage if job.asked.wants_usage else None
            return EventStream(self._client, job.choices, frames, usage)
        answer = await until_gone(request.receive, self._plain(job))
        # Where there is no answer there is no client either: what is returned goes nowhere.
        return Response(answer, 200, media_type="application/json") if answer is not None else Response()

    async def _plain(self, job: Job) -> str:
        found = {choice.query.id: _Found(choice) for choice in job.choices}
        async with aclosing(self._client.batches([choice.query for choice in job.choices])) as batches:
            async for updates in batches:
                for update in updates:
                    if error := failure(update):
                        raise error
                    found[update.query_id].take(update)
        usages = [one.usage for one in found.values() if one.usage is not None]
        absent: Any = {} if job.asked.baton_usage else {"usage": {"baton"}}
        return _plain_body(job, list(found.values()), job.usage(usages)).model_dump_json(exclude=absent)

    def _completion_job(self, body: bytes, asker: str) -> Job:
        asked = CompletionRequest.read(parse_object(body))
        self._check_model(asked.model)
        params, terms, tokenizer = asked.params(), asked.terms(asker), self._client.tokenizer
        choices = []
        for prompt in asked.prompts():
            tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            echo = self._echo(prompt) if asked.echo else ""
            for query in self._client.queries(tokens, params, terms):
                logprobs = None if asked.logprobs is None else CompletionLogprobs(tokenizer)
                choices.append(Choice(query, echo, logprobs, asked.silent))
        return Job(asked, choices, self._client.model_name)

    def _chat_job(self, body: bytes, asker: str) -> Job:
        asked = ChatRequest.read(parse_object(body))
        self._check_model(asked.model)
        params, terms, tokenizer = asked.params(), asked.terms(asker), self._client.tokenizer
        try:
            queries = self._client.queries(tokenizer.chat(asked.turns()), params, terms)
        except RequestError as error:
            error.param = "messages" if error.param == "prompt" else error.param
            raise
        logprobs = ChatLogprobs(tokenizer) if asked.logprobs else None
        return Job(asked, [Choice(query, logprobs=logprobs) for query in queries], self._client.model_name)

    def _echo(self, prompt: str | list[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        return self._client.tokenizer.decode(prompt, skip_special_tokens=False)

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._client.model_name:
            message = f"there is no model {name!r} here: this server has {self._client.model_name!r}"
            raise ModelNotFound(message, param="model")


def _asker(request: Request) -> str:
    """Whose request it is, by the key that came with it: a digest, since the key itself belongs nowhere else."""
    key = request.headers.get("authorization", "")
    return hashlib.blake2b(key.encode(), key=_SALT, digest_size=8).hexdigest() if key else ""


@dataclass(slots=True)
class _Found:
    """What the updates of one choice came to."""

    choice: Choice
    pieces: list[Piece] = field(default_factory=list)
    reason: str = ""
    usage: Usage | None = None

    def take(self, update: Update) -> None:
        self.pieces += self.choice.take(update)
        self.reason = self.choice.finish_reason(update) or self.reason
        self.usage = self.choice.usage(update) or self.usage

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    @property
    def logprobs(self) -> Any:
        return joined(logprobs for _, logprobs in self.pieces if logprobs is not None)


def _plain_body(job: Job, found: Sequence[_Found], usage: UsageBody) -> BaseModel:
    head: dict[str, Any] = job.head(chunk=False)
    numbered = [(i, one, {"logprobs": one.logprobs, "finish_reason": one.reason}) for i, one in enumerate(found)]
    if not job.chat:
        plain = [CompletionChoice(index=i, text=one.text, **rest) for i, one, rest in numbered]
        return Completion(**head, choices=plain, usage=usage)
    said = [ChatChoice(index=i, message=AssistantMessage(content=one.text), **rest) for i, one, rest in numbered]
    return ChatCompletion(**head, choices=said, usage=usage)
