"""The two generating routes: a body becomes queries, and their updates an answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from baton.engine.client import Client
from baton.errors import ModelNotFound, RequestError
from baton.events import Usage
from baton.query import Query
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
from baton.server.errors import failure
from baton.server.schema import ChatRequest, CompletionRequest, Generation
from baton.server.stream import EventStream, Frames, until_gone


@dataclass(frozen=True, slots=True)
class Job:
    """A request made ready for the engine. Choice j of prompt i is query i * n + j; `echoes` are theirs."""

    asked: Generation
    queries: list[Query]
    echoes: list[str]
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
        prompts = sum(len(query.prompt) for query in self.queries[:: self.asked.n])
        return usage_body(prompts, usages, baton=self.asked.baton_usage)


class Generating:
    """The two routes over one engine."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, self._completion_job)

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(request, self._chat_job)

    async def _answer(self, request: Request, make_job: Callable[[bytes], Job]) -> Response:
        body = await read_body(request)
        # Parsing, templates and tokenisers are work for a thread: other streams go on meanwhile.
        job = await anyio.to_thread.run_sync(make_job, body)
        if job.asked.stream:
            frames = Frames(job.head(chunk=True), chat=job.chat, usage_last=job.asked.wants_usage)
            usage = job.usage if job.asked.wants_usage else None
            return EventStream(self._client, job.queries, frames, job.echoes, usage)
        answer = await until_gone(request.receive, self._plain(job))
        # Where there is no answer there is no client either: what is returned goes nowhere.
        return Response(answer, 200, media_type="application/json") if answer is not None else Response()

    async def _plain(self, job: Job) -> str:
        texts = [[echo] for echo in job.echoes]
        reasons = [""] * len(job.queries)
        usages: list[Usage] = []
        choice = {query.id: index for index, query in enumerate(job.queries)}
        async with aclosing(self._client.batches(job.queries)) as batches:
            async for updates in batches:
                for update in updates:
                    if error := failure(update):
                        raise error
                    index = choice[update.query_id]
                    texts[index].append(update.text)
                    reasons[index] = update.finish_reason or reasons[index]
                    if update.usage is not None:
                        usages.append(update.usage)
        found = [("".join(pieces), reason) for pieces, reason in zip(texts, reasons, strict=True)]
        absent: Any = {} if job.asked.baton_usage else {"usage": {"baton"}}
        return _plain_body(job, found, job.usage(usages)).model_dump_json(exclude=absent)

    def _completion_job(self, body: bytes) -> Job:
        asked = CompletionRequest.read(parse_object(body))
        self._check_model(asked.model)
        params = asked.sampling(asked.max_tokens)
        queries, echoes = [], []
        for prompt in asked.prompts():
            tokens = self._client.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            queries += self._client.queries(tokens, params)
            echoes += [self._echo(prompt) if asked.echo else ""] * params.n
        return Job(asked, queries, echoes, self._client.model_name)

    def _chat_job(self, body: bytes) -> Job:
        asked = ChatRequest.read(parse_object(body))
        self._check_model(asked.model)
        params = asked.sampling(asked.limit())
        try:
            queries = self._client.queries(self._client.tokenizer.chat(asked.turns()), params)
        except RequestError as error:
            error.param = "messages" if error.param == "prompt" else error.param
            raise
        return Job(asked, queries, [""] * params.n, self._client.model_name)

    def _echo(self, prompt: str | list[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        return self._client.tokenizer.decode(prompt, skip_special_tokens=False)

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._client.model_name:
            message = f"there is no model {name!r} here: this server has {self._client.model_name!r}"
            raise ModelNotFound(message, param="model")


def _plain_body(job: Job, found: Sequence[tuple[str, str]], usage: UsageBody) -> BaseModel:
    head: dict[str, Any] = job.head(chunk=False)
    numbered = list(enumerate(found))
    if not job.chat:
        plain = [CompletionChoice(index=i, text=text, finish_reason=why) for i, (text, why) in numbered]
        return Completion(**head, choices=plain, usage=usage)
    said = [(i, AssistantMessage(content=text), why) for i, (text, why) in numbered]
    choices = [ChatChoice(index=i, message=message, finish_reason=why) for i, message, why in said]
    return ChatCompletion(**head, choices=choices, usage=usage)
