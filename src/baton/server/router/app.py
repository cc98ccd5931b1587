"""The application of a server with several models: requests go to the model that they name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from baton.core.errors import ShuttingDown
from baton.core.limits import Limits
from baton.engine.client import Held
from baton.server.app import GENERATING, add_doors, add_errors, add_pages
from baton.server.auth import Access
from baton.server.errors import MESSAGES
from baton.server.router.models import Model, ModelNotLoaded, Models
from baton.server.router.proxy import Forwarded, Forwarder
from baton.server.state_answers import Load
from baton.server.workers import Workers

_FORWARDED = (*sorted(GENERATING), f"{MESSAGES}/count_tokens", "/tokenize", "/detokenize")
# Routes about one model: the one that `model` in the query names, else the one that was used last.
_OF_ONE = ("/live/data", "/tokenizer_info", "/openapi.json")


def create_router(models: Models, *, limits: Limits, version: str, access: Access) -> FastAPI:
    """The server over several models. `app.state.close` ends its threads, `app.state.shut` its connections."""
    app = FastAPI(title="baton", version=version, docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    app.state.draining = False
    app.state.answers = Held(limits.max_answers_bytes)
    workers = Workers(limits)
    app.state.close = workers.close
    forwarder = Forwarder(models, workers, limits)
    app.state.shut = forwarder.close
    app.state.forwarder = forwarder
    routes = _Routes(models, forwarder, version)
    for path in _FORWARDED:
        app.add_api_route(path, routes.forward, methods=["POST"], response_model=None)
    get_routes: dict[str, Callable[..., Any]] = {
        "/v1/models": routes.models,
        "/v1/models/{model:path}": routes.model,
        "/load": routes.load,
        "/metrics": routes.metrics,
        "/health": routes.health,
        "/ready": routes.ready,
        "/version": routes.version,
        **dict.fromkeys(_OF_ONE, routes.of_one),
    }
    for path, route in get_routes.items():
        app.add_api_route(path, route, response_model=None)
    add_pages(app)
    add_errors(app, None)
    add_doors(app, access, limits)
    return app


class _Routes:
    """Routes over several models."""

    def __init__(self, models: Models, forwarder: Forwarder, version: str) -> None:
        self._models = models
        self._forwarder = forwarder
        self._version = version
        self._since = int(time.time())

    async def forward(self, request: Request) -> Response:
        _check(request)
        return Forwarded(self._forwarder)

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(model) for model in self._models]})

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._card(self._models.named(request.path_params["model"])))

    async def health(self) -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Requests are taken; models that are not loaded yet will be."""
        _check(request)
        return JSONResponse({"status": "ready"})

    async def version(self) -> Response:
        return JSONResponse({"version": self._version})

    async def load(self) -> Response:
        """The sums over all models that are loaded."""
        total = dict.fromkeys(Load.model_fields, 0)
        for answer in await self._told_by_all("/load"):
            for name, value in answer.json().items():
                total[name] = total.get(name, 0) + value
        return JSONResponse(total)

    async def metrics(self) -> Response:
        """The metrics of all loaded models, told apart by their label, and which models these are."""
        pages = [answer.text for answer in await self._told_by_all("/metrics")]
        body = merged([*pages, _own_metrics(self._models)])
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def of_one(self, request: Request) -> Response:
        """What one model's server returns."""
        sent = request.query_params.multi_items()
        name = next((value for known, value in sent if known == "model"), None)
        loaded = self._models.loaded
        if name is None and not loaded:
            raise ModelNotLoaded("no model is loaded yet: a question loads the model that it names")
        model = loaded[0] if name is None else self._models.named(name)
        if model not in loaded:
            raise ModelNotLoaded(f"{model.name} is not loaded now: a question to it loads it")
        rest = "&".join(part for part in request.url.query.split("&") if not part.startswith("model="))
        answer = await self._told(model, request.url.path, rest)
        headers = {name: answer.headers[name] for name in ("content-type", "cache-control") if name in answer.headers}
        return Response(answer.content, answer.status_code, headers)

    async def _told(self, model: Model, path: str, query: str = "") -> Any:
        assert model.process is not None
        return await self._forwarder.ask(model.process, path, query)

    async def _told_by_all(self, path: str) -> list[Any]:
        """The answers of all loaded models; one that does not answer is left out."""
        asked = [self._told(model, path) for model in self._models.loaded]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return [answer for answer in answers if not isinstance(answer, BaseException) and answer.status_code == 200]

    def _card(self, model: Model) -> dict[str, Any]:
        """As in answers.ModelCard; the context's size is only known once the model was loaded."""
        bare = {"id": model.name, "object": "model", "created": self._since, "owned_by": "baton"}
        return {**bare, **model.card, "state": model.state.value}


def _check(request: Request) -> None:
    if request.app.state.draining:
        raise ShuttingDown("the server is shutting down")


def merged(pages: Iterable[str]) -> str:
    """Merges several pages in Prometheus' text format: each family once, with the samples of all."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for page in pages:
        head: list[str] = []
        samples: list[str] = []
        for line in page.splitlines():
            if line.startswith("# HELP "):
                head, samples = families.setdefault(line.split(" ", 3)[2], ([], []))
                fresh = not head
            if not line.startswith("#"):
                samples.append(line)
            elif fresh:
                head.append(line)
    return "".join(f"{line}\n" for head, samples in families.values() for line in (*head, *samples))


def _own_metrics(models: Models) -> str:
    lines = ["# HELP baton_model_loaded Whether the model is loaded.", "# TYPE baton_model_loaded gauge"]
    serving = models.loaded
    lines += [f"baton_model_loaded{_label(model)} {int(model in serving)}" for model in models]
    lines += [
        "# HELP baton_model_loads_total How often the model was loaded.",
        "# TYPE baton_model_loads_total counter",
    ]
    lines += [f"baton_model_loads_total{_label(model)} {model.loads}" for model in models]
    return "\n".join(lines)


def _label(model: Model) -> str:
    name = model.name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{model_name="{name}"}}'
