"""The routes that report: the model, the engine's state, and tokens of a text."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from baton.core.errors import EngineUnhealthy, InvalidValue, ModelNotFound, ShuttingDown
from baton.engine.client import Client, Held
from baton.server.body import parse_object
from baton.server.ignored import IgnoredFields
from baton.server.messages import check_template
from baton.server.state_answers import Load, ModelCard, ModelList, TokenizerInfo
from baton.server.stream import InSlices
from baton.server.token_requests import DetokenizeRequest, TokenizeRequest
from baton.server.workers import Line, Workers
from baton.server.written import written


class StatusRoutes:
    """Routes over one engine. `render_metrics` returns the metrics page and its content type."""

    def __init__(
        self,
        client: Client,
        workers: Workers,
        line: Line,
        answers: Held,
        render_metrics: Callable[[], tuple[bytes, str]],
        version: str,
        ignored: IgnoredFields,
    ) -> None:
        self._client = client
        self._ignored = ignored
        self._workers = workers
        self._line = line
        self._answers = answers
        self._render_metrics = render_metrics
        self._version = version
        self._limits = client.settings.limits
        self._since = int(time.time())

    async def health(self) -> Response:
        """The process is running."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """The engine can take queries now; else 503 with the reason."""
        reason = self._client.not_ready()
        if request.app.state.draining:
            raise ShuttingDown("the server is shutting down")
        if reason is not None:
            raise EngineUnhealthy(reason)
        return JSONResponse({"status": "ready"})

    async def version(self) -> Response:
        return JSONResponse({"version": self._version})

    async def load(self) -> Response:
        """The engine's state now, and counts since its start."""
        stats = self._client.stats()
        names = set(Load.model_fields) & set(type(stats).__dataclass_fields__)
        load = Load(
            server_load=stats.running + stats.waiting + stats.prefilling + stats.ready,
            useful_slots=stats.slots.useful,
            idle_slots=stats.slots.idle,
            **{name: getattr(stats, name) for name in names},
        )
        return self._json(load.model_dump_json())

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        body, kind = await self._workers.answer(self._render_metrics)
        return Response(body, headers={"content-type": kind})

    async def models(self) -> Response:
        return self._json(ModelList(data=[self._card()]).model_dump_json())

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        self._check_model(name)
        return self._json(self._card().model_dump_json())

    async def tokenizer_info(self) -> Response:
        """The tokenizer's description, for clients that count tokens or write prompts themselves."""
        return self._json(await self._workers.answer(self._tokenizer_info))

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text, or of a conversation as the model is shown it."""
        body, ignored = await self._line.pass_through(request, self._tokenized)
        return self._ignored.tell(request, self._json(body), ignored)

    async def detokenize(self, request: Request) -> Response:
        body, ignored = await self._line.pass_through(request, self._detokenized)
        return self._ignored.tell(request, self._json(body), ignored)

    def _tokenized(self, body: bytes) -> tuple[bytes, tuple[str, ...]]:
        asked = TokenizeRequest.read(parse_object(body, self._limits))
        self._check_model(asked.model)
        turns = asked.turns()
        tokenizer = self._client.tokenizer
        if turns is not None:
            check_template(turns, tokenizer.chat_template(tools=False))
            tokens = tokenizer.chat(turns, (), asked.template_options(tokenizer), any_length=True)
        else:
            tokens = tokenizer.encode(asked.prompt or "", special=asked.add_special_tokens)
        longest = self._client.settings.max_model_len
        return written({"count": len(tokens), "max_model_len": longest, "tokens": tokens}), asked.ignored

    def _detokenized(self, body: bytes) -> tuple[bytes, tuple[str, ...]]:
        asked = DetokenizeRequest.read(parse_object(body, self._limits))
        self._check_model(asked.model)
        tokenizer = self._client.tokenizer
        if not all(0 <= token < tokenizer.vocabulary for token in asked.tokens):
            message = f"tokens has ids outside the vocabulary of {tokenizer.vocabulary}"
            raise InvalidValue(message, param="tokens")
        return written({"prompt": tokenizer.decode(asked.tokens, skip_special_tokens=False)}), asked.ignored

    def _tokenizer_info(self) -> bytes:
        tokenizer = self._client.tokenizer
        roles = {f"{role}_token": tokenizer.roles.get(f"{role}_token") for role in ("bos", "eos", "pad", "unk")}
        info = TokenizerInfo(
            tokenizer_class=tokenizer.kind,
            vocab_size=tokenizer.vocabulary,
            max_model_len=self._client.settings.max_model_len,
            special_tokens=dict(tokenizer.special),
            chat_template=tokenizer.chat_template(tools=False),
            **roles,
        )
        return info.model_dump_json().encode()

    def _card(self) -> ModelCard:
        longest = self._client.settings.max_model_len
        return ModelCard(
            id=self._client.model_name,
            created=self._since,
            max_model_len=longest,
            sampling_defaults=self._client.defaults,
        )

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._client.model_name:
            message = f"there is no model {name!r} here: this server has {self._client.model_name!r}"
            raise ModelNotFound(message, param="model")

    def _json(self, body: str | bytes) -> Response:
        return InSlices(body if isinstance(body, bytes) else body.encode(), self._answers)
