"""The generating routes: a body becomes queries, and their updates become an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import ModelNotFound, Overloaded, RequestError
from baton.core.events import Update
from baton.core.origin import NO_ORIGIN, Origin
from baton.engine.client import Client, Held, size_of
from baton.parsing.reading import reading_of, reasons
from baton.server.anthropic import CountRequest, MessagesRequest
from baton.server.anthropic_events import MessageWriter
from baton.server.auth import asker
from baton.server.body import parse_object
from baton.server.choices import Choice
from baton.server.errors import MESSAGES, failure
from baton.server.ignored import IgnoredFields
from baton.server.job import Job as Job
from baton.server.keeping import KEPT, Keeping, Kept
from baton.server.logprobs import ChatLogprobs, CompletionLogprobs
from baton.server.messages import check_template
from baton.server.origin import origin_of
from baton.server.relaxed import HEADER as RELAXED
from baton.server.responses import ResponsesRequest
from baton.server.responses_events import ResponseWriter
from baton.server.schema import ChatRequest, CompletionRequest
from baton.server.stream import EventStream, InSlices, Numbering, all_answers, until_gone
from baton.server.tools import Tools
from baton.server.workers import LIGHT, Line, Workers, weight
from baton.server.written import written

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
_NAMES_IN_CHAT = {"prompt": "messages", "logprobs": "top_logprobs"}


class Generating:
    """The routes over one engine."""

    def __init__(
        self,
        client: Client,
        workers: Workers,
        line: Line,
        answers: Held,
        ignored: IgnoredFields,
        keeping: Keeping | None = None,
    ) -> None:
        """`keeping`: answers outlive their connections; None if they do not."""
        self._keeping = keeping
        self._client = client
        self._ignored = ignored
        self._limits = client.settings.limits
        self._workers = workers
        self._line = line
        self._answers = answers
        self.job_of: Mapping[str, Callable[[bytes, str], Job]] = {
            COMPLETIONS: self._completion_job,
            CHAT: self._chat_job,
            RESPONSES: self._response_job,
            MESSAGES: self._message_job,
        }

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, COMPLETIONS)

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(request, CHAT)

    async def responses(self, request: Request) -> Response:
        return await self._answer(request, RESPONSES)

    async def messages(self, request: Request) -> Response:
        return await self._answer(request, MESSAGES)

    async def count_tokens(self, request: Request) -> Response:
        """Returns the number of tokens of a conversation, as the model is shown it."""
        body, ignored = await self._line.pass_through(request, self._counted)
        return self._ignored.tell(request, InSlices(body, self._answers), ignored)

    async def _answer(self, request: Request, path: str) -> Response:
        # Parsing, templates and tokenisers need a thread, so that other streams go on meanwhile.
        make_job, key = self.job_of[path], asker(request.scope)
        if self._keeping is not None:
            make_job = partial(_with_its_body, make_job)
        job = await self._line.pass_through(request, make_job, key, origin_of(request.headers))
        response = await self.respond(request, job, self._kept(request, path, job))
        if job.relaxed:
            response.headers[RELAXED] = ", ".join(job.relaxed)
        return self._ignored.tell(request, response, job.ignored)

    def _kept(self, request: Request, path: str, job: Job) -> Kept | None:
        if self._keeping is None:
            return None
        queries = [choice.query for choice in job.choices]
        about: dict[str, Any] = {"model": job.model, "created": job.created, "stream": job.asked.stream}
        return self._keeping.keep(request, path, job.body_sent, queries, **about)

    async def respond(self, request: Request, job: Job, kept: Kept | None = None) -> Response:
        """The answer to a job, streamed or whole as it was asked for."""
        limits = self._limits
        if job.asked.stream:
            news = (
                self._client.batches(
                    [choice.query for choice in job.choices],
                    silence_seconds=limits.stream_comment,
                    most_bytes=limits.max_unread_bytes,
                    held=self._answers,
                )
                if kept is None
                else kept.recording.follow(limits.stream_comment)
            )
            numbering = None if kept is None else Numbering(kept.after)
            response: Response = EventStream(news, self._workers, self._answers, job.choices, job.events(), numbering)
        else:
            answer = await until_gone(request.receive, self.plain(job, kept))
            # Without an answer the client has gone, and nobody gets what is returned.
            response = Response() if answer is None else InSlices(answer, self._answers)
        if kept is not None:
            response.headers[KEPT] = kept.request_id
        return response

    async def plain(self, job: Job, kept: Kept | None = None) -> bytes:
        """The body of a whole answer."""
        queries = [choice.query for choice in job.choices]
        updates_so_far: list[Update] = []
        size = 0
        hold = self._answers.hold(updates_so_far.clear)
        silence = self._limits.stream_comment
        news = (
            self._client.batches(queries, silence_seconds=silence) if kept is None else kept.recording.follow(silence)
        )
        try:
            async with aclosing(news) as batches:
                async for updates in batches:
                    for update in updates:
                        if error := failure(update):
                            raise error
                    updates_so_far += updates
                    size += weight(updates)
                    hold.set(hold.bytes + sum(map(size_of, updates)))
                    if hold.gone:
                        raise Overloaded(all_answers(self._answers))
            hold.kept = True
            return job.body(updates_so_far) if size < LIGHT else await self._workers.answer(job.body, updates_so_far)
        finally:
            hold.free()

    def _completion_job(self, body: bytes, key: str, origin: Origin = NO_ORIGIN) -> Job:
        asked = CompletionRequest.read(parse_object(body, self._limits))
        self._check_model(asked.model)
        params, tokenizer = asked.params(self._client.defaults), self._client.tokenizer
        options = asked.request_options(key, self._limits, origin)
        choices: list[Choice] = []
        for prompt in asked.prompts(self._limits):
            queries = self._client.queries(self._tokens(prompt), params, options)
            echo = self._echo(prompt) if asked.echo else ""
            for query in queries:
                logprobs = None if asked.logprobs is None else CompletionLogprobs(tokenizer)
                choices.append(Choice(query, echo, logprobs, asked.silent))
        return Job(asked, choices, self._client.model_name, ignored=asked.ignored)

    def _chat_job(self, body: bytes, key: str, origin: Origin = NO_ORIGIN) -> Job:
        return self._chat(ChatRequest.read(parse_object(body, self._limits)), key, origin)

    def _response_job(self, body: bytes, key: str, origin: Origin = NO_ORIGIN) -> Job:
        sent = ResponsesRequest.read(parse_object(body, self._limits))
        translation = sent.to_chat()
        with translation.in_its_names():
            job = self._chat(ChatRequest.read(translation.chat), key, origin)
        writer = ResponseWriter(sent, job.choices[0].query, job.model, job.usage)
        return replace(job, writer=writer, ignored=sent.ignored)

    def _message_job(self, body: bytes, key: str, origin: Origin = NO_ORIGIN) -> Job:
        sent = MessagesRequest.read(parse_object(body, self._limits))
        translation = sent.to_chat(self._client.tokenizer.template_variables)
        with translation.in_its_names():
            job = self._chat(ChatRequest.read(translation.chat), key, origin, up_to_context=True)
        writer = MessageWriter(sent, job.choices[0].query, job.model, job.usage)
        return replace(job, writer=writer, ignored=sent.ignored)

    def _counted(self, body: bytes) -> tuple[bytes, tuple[str, ...]]:
        sent = CountRequest.read(parse_object(body, self._limits))
        translation = sent.to_chat(self._client.tokenizer.template_variables)
        with translation.in_its_names():
            asked = ChatRequest.read(translation.chat)
            self._check_model(asked.model)
            tools = asked.offered(self._client.tokenizer, self._limits)
            # Clients count to learn whether a conversation must be cut.
            count = len(self._prompt(asked, tools, any_length=True))
        return written({"input_tokens": count}), sent.ignored

    def _prompt(self, asked: ChatRequest, tools: Tools | None, *, any_length: bool = False) -> list[int]:
        turns, tokenizer = asked.turns(), self._client.tokenizer
        check_template(turns, tokenizer.chat_template(tools=tools is not None))
        options = asked.template_options(tokenizer, reasons=reasons(tokenizer))
        return tokenizer.chat(turns, tools.described if tools else (), options, any_length=any_length)

    def _chat(self, asked: ChatRequest, key: str, origin: Origin, *, up_to_context: bool = False) -> Job:
        """`up_to_context`: an answer that max_tokens allows and the context does not ends with the context."""
        self._check_model(asked.model)
        params = asked.params(self._client.defaults)
        options = asked.request_options(key, self._limits, origin)
        tokenizer, tools = self._client.tokenizer, asked.offered(self._client.tokenizer, self._limits)
        form = tools.form if tools else None
        reading = reading_of(
            tokenizer, tools, formed=params.form is not None, reasoning=self._client.settings.reasoning
        )
        try:
            prompt = self._prompt(asked, tools)
            if up_to_context and len(prompt) + (params.max_tokens or 0) > self._client.settings.max_model_len:
                params = replace(params, max_tokens=None)
            queries = self._client.queries(
                prompt, params, options, form=form, visible_special_tokens=reading.visible_special_tokens
            )
        except RequestError as error:
            error.param = _NAMES_IN_CHAT.get(error.param or "", error.param)
            raise
        logprobs = ChatLogprobs(tokenizer) if asked.logprobs else None
        begun = str(asked.turns()[-1].get("content") or "") if asked.continue_final_message else ""
        choices = [Choice(query, logprobs=logprobs, parser=reading.parser_of(prompt, begun)) for query in queries]
        return Job(
            asked,
            choices,
            self._client.model_name,
            tools is not None,
            ignored=asked.ignored,
            relaxed=tools.relaxed if tools else (),
        )

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        self._client.fit(prompt)
        return self._client.tokenizer.encode(prompt)

    def _echo(self, prompt: str | list[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        return self._client.tokenizer.decode(prompt, skip_special_tokens=False)

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._client.model_name:
            message = f"there is no model {name!r} here: this server has {self._client.model_name!r}"
            raise ModelNotFound(message, param="model")


def _with_its_body(make_job: Callable[..., Job], body: bytes, *given: Any) -> Job:
    return replace(make_job(body, *given), body_sent=body)
