"""The application: routes, what every request passes on its way to them, and how errors are answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from baton.engine.client import Client
from baton.errors import BatonError, RequestError
from baton.server.answers import (
    ChatCompletion,
    Completion,
    ErrorAnswer,
    Load,
    ModelCard,
    ModelList,
    Prompt,
    Tokens,
)
from baton.server.door import Door
from baton.server.errors import answer_http_exception, error_response, internal_error
from baton.server.generate import Generating
from baton.server.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from baton.server.status import Telling

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
REQUESTS: tuple[type[BaseModel], ...] = (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest)

PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.svg": ("page.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}
"""The pages hold nothing secret: they ask for the key and send it with what they fetch."""

PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
}


def create_app(
    client: Client,
    *,
    render_metrics: Callable[[], tuple[bytes, str]],
    version: str,
    api_key: str | None = None,
    reject: Callable[[str], None] | None = None,
) -> FastAPI:
    """The server over one engine.

    `render_metrics` answers the metrics page and its content type. `reject` is told the error code of each request
    that never came to the engine; what the engine itself refuses is in its events. With `api_key` every route but
    /health and the pages needs it. `serve` sets `app.state.draining` when the process is told to end.
    """
    app = FastAPI(title="baton", version=version, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.draining = False
    _add_generating(app, Generating(client))
    _add_telling(app, Telling(client, render_metrics, version))
    _add_pages(app)
    _add_errors(app, reject)
    app.add_middleware(Door, api_key=api_key, open_paths={"/health", *PAGE_FILES})
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _add_generating(app: FastAPI, routes: Generating) -> None:
    _post(app, COMPLETIONS, routes.completions, CompletionRequest, Completion)
    _post(app, CHAT, routes.chat_completions, ChatRequest, ChatCompletion)


def _add_telling(app: FastAPI, routes: Telling) -> None:
    _post(app, "/tokenize", routes.tokenize, TokenizeRequest, Tokens)
    _post(app, "/detokenize", routes.detokenize, DetokenizeRequest, Prompt)
    _get(app, "/v1/models", routes.models, ModelList)
    _get(app, "/v1/models/{model:path}", routes.model, ModelCard)
    _get(app, "/load", routes.load, Load)
    for path in ("health", "ready", "version", "metrics"):
        _get(app, f"/{path}", getattr(routes, path), None)


def _add_pages(app: FastAPI) -> None:
    folder = Path(__file__).parent / "page"
    for path, (name, kind) in PAGE_FILES.items():
        headers = {**PAGE_HEADERS, "content-type": kind}
        app.add_api_route(path, _page((folder / name).read_bytes(), headers), include_in_schema=False)


def _page(body: bytes, headers: dict[str, str]) -> Callable[[], Any]:
    async def page() -> Response:
        return Response(body, headers=headers)

    return page


def _add_errors(app: FastAPI, reject: Callable[[str], None] | None) -> None:
    async def answer_baton_error(request: Request, error: Exception) -> Response:
        if reject is not None and isinstance(error, RequestError) and request.url.path in (COMPLETIONS, CHAT):
            reject(error.code or "invalid_request")
        return error_response(error if isinstance(error, BatonError) else internal_error())

    app.add_exception_handler(BatonError, answer_baton_error)
    app.add_exception_handler(HTTPException, answer_http_exception)


def _post(app: FastAPI, path: str, route: Callable[..., Any], takes: type[BaseModel], answers: type[BaseModel]) -> None:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{takes.__name__}"}}}
    described = {"requestBody": {"required": True, "content": content}}
    app.add_api_route(
        path,
        route,
        methods=["POST"],
        response_model=None,
        responses={200: {"model": answers}, "default": {"model": ErrorAnswer}},
        openapi_extra=described,
    )


def _get(app: FastAPI, path: str, route: Callable[..., Any], answers: type[BaseModel] | None) -> None:
    responses: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorAnswer}}
    if answers is not None:
        responses[200] = {"model": answers}
    app.add_api_route(path, route, response_model=None, responses=responses)


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's, with the requests that the routes read by themselves."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        pairs = [(model, "validation") for model in REQUESTS]
        _, schemas = models_json_schema(pairs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        document["components"]["schemas"].update(schemas["$defs"])
        app.openapi_schema = document
    return app.openapi_schema
