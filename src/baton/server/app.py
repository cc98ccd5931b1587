"""The application: its routes, its middleware, and how errors become responses."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match

from baton.core.errors import BatonError, RequestError
from baton.core.limits import Limits
from baton.engine.client import Client, Held
from baton.jobs.folder import Folder
from baton.server.answers import ChatCompletion, Completion
from baton.server.anthropic import CountRequest, MessagesRequest
from baton.server.auth import OPEN, Access, Origins
from baton.server.batch_api import add_batches
from baton.server.block_answers import MessageObject, ResponseObject, TokenCount
from baton.server.errors import MESSAGES, answer_http_exception, error_response, internal_error
from baton.server.generate import CHAT, COMPLETIONS, RESPONSES, Generating
from baton.server.ignored import IgnoredFields
from baton.server.keeping import Keeping
from baton.server.live import LiveRoutes, described_live
from baton.server.middleware import AuthMiddleware, Middleware
from baton.server.not_found import PAGE_HEADERS as PAGE_HEADERS
from baton.server.not_found import not_found
from baton.server.openapi import described
from baton.server.page_inputs import with_inputs
from baton.server.responses import ResponsesRequest
from baton.server.schema import ChatRequest, CompletionRequest
from baton.server.state_answers import Load, ModelCard, ModelList, Prompt, Status, TokenizerInfo, Tokens, Version
from baton.server.status import StatusRoutes
from baton.server.stream_api import add_streams
from baton.server.streams import Folder as HandoverFolder
from baton.server.streams import Streams
from baton.server.token_requests import DetokenizeRequest, TokenizeRequest
from baton.server.workers import Line, Workers

GENERATING = frozenset({COMPLETIONS, CHAT, RESPONSES, MESSAGES})

PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/live": ("live.html", "text/html; charset=utf-8"),
    "/live.css": ("live.css", "text/css; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.svg": ("page.svg", "image/svg+xml"),
    "/favicon.ico": ("page.svg", "image/svg+xml"),
}
_SCRIPTS: tuple[str, ...] = ("docs", "live", "page", "pane", "settings", "stream", "text", "theme")
_SCRIPTS += ("live-batch", "live-charts", "live-news", "live-page")
PAGE_FILES |= {f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in _SCRIPTS}
PAGE_FILES |= {f"/{name}.js": (f"vendor/{name}.js", "text/javascript; charset=utf-8") for name in ("marked", "purify")}
"""The pages hold nothing secret: they ask for the key and send it with what they fetch."""

OPEN_PATHS = frozenset({"/health", *PAGE_FILES})
"""These need no key."""


def create_app(
    client: Client,
    *,
    render_metrics: Callable[[], tuple[bytes, str]],
    version: str,
    live: Callable[[int, float], bytes] | None = None,
    live_of: Callable[[int, float, str], bytes] | None = None,
    access: Access = OPEN,
    reject: Callable[[str], None] | None = None,
    ignore: Callable[[Collection[str]], None] = lambda names: None,
    batches: Folder | None = None,
    handover: HandoverFolder | None = None,
) -> FastAPI:
    """The server over one engine.

    `render_metrics` returns the metrics page and its content type. `live` returns what the live page draws, as JSON,
    from a serial and a time on; `live_of` the same of one of several engines, "" for any. Without them there is no
    /live/data. `reject` gets the error code of each request that
    never reached the engine; the engine reports its own refusals by events. `ignore` gets the names of fields that were
    taken without effect, from `field_rules.REPORTED`. `batches` keeps files and batches, on which a thread works from
    now on; without it there are no routes for them.

    `handover` keeps answers between this process and the next, and clients may come back for theirs; without it answers
    end with their connections. `app.state.begin`, if it is not None, is to be awaited before the first request.

    If `access` has keys, every route needs one, except /health and the pages. `serve` sets `app.state.draining` when
    the process is told to end. `app.state.answers` holds what clients have not read yet. `app.state.drain` stops the
    work on batches and drains the client. `app.state.close` ends the application's threads when it is not served any
    more.
    """
    app = FastAPI(title="baton", version=version, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.draining = False
    workers = Workers(client.settings.limits)
    app.state.close, app.state.drain = workers.close, client.drain
    limits = client.settings.limits
    line = Line(client, workers, Held(max(limits.max_bodies_bytes, limits.max_body_bytes)))
    app.state.answers = Held(limits.max_answers_bytes)
    ignored = IgnoredFields(ignore)
    app.state.begin = None
    keeping = None
    if handover is not None:
        streams = Streams(handover, client, limits)
        keeping = Keeping(streams, keys=bool(access.keys))
        app.state.begin, app.state.drain = streams.take_up, streams.drain

        def close() -> None:
            streams.close()
            workers.close()

        app.state.close = close
    generating = Generating(client, workers, line, app.state.answers, ignored, keeping)
    _add_generating(app, generating)
    if keeping is not None:
        add_streams(app, keeping, generating, workers)
    _add_telling(app, StatusRoutes(client, workers, line, app.state.answers, render_metrics, version, ignored))
    if live is not None or live_of is not None:
        routes = LiveRoutes(live, workers, live_of)
        app.add_api_route("/live/data", routes.data, response_model=None, **described_live(live_of is not None))
    if batches is not None:
        add_batches(app, batches, client, workers, keys=bool(access.keys))
    add_pages(app)
    add_errors(app, reject)
    add_doors(app, access, limits)
    app.openapi = cache(lambda: described(app, client, access, OPEN_PATHS))  # type: ignore[method-assign]
    return app


def add_doors(app: FastAPI, access: Access, limits: Limits) -> None:
    """Adds the middleware. The one that is added last runs first."""
    app.add_middleware(AuthMiddleware, access=access, open_paths=OPEN_PATHS, limits=limits)
    if access.origins:
        app.add_middleware(Origins, origins=access.origins)
    app.add_middleware(Middleware, limits=limits)


def _add_generating(app: FastAPI, routes: Generating) -> None:
    _post(app, COMPLETIONS, routes.completions, CompletionRequest, Completion)
    _post(app, CHAT, routes.chat_completions, ChatRequest, ChatCompletion)
    _post(app, RESPONSES, routes.responses, ResponsesRequest, ResponseObject)
    _post(app, MESSAGES, routes.messages, MessagesRequest, MessageObject)
    _post(app, f"{MESSAGES}/count_tokens", routes.count_tokens, CountRequest, TokenCount)


def _add_telling(app: FastAPI, routes: StatusRoutes) -> None:
    _post(app, "/tokenize", routes.tokenize, TokenizeRequest, Tokens)
    _post(app, "/detokenize", routes.detokenize, DetokenizeRequest, Prompt)
    _get(app, "/v1/models", routes.models, ModelList)
    _get(app, "/v1/models/{model:path}", routes.model, ModelCard)
    _get(app, "/load", routes.load, Load)
    _get(app, "/tokenizer_info", routes.tokenizer_info, TokenizerInfo)
    _get(app, "/health", routes.health, Status)
    _get(app, "/ready", routes.ready, Status)
    _get(app, "/version", routes.version, Version)
    app.add_api_route("/metrics", routes.metrics, response_model=None, response_class=PlainTextResponse)


def add_pages(app: FastAPI) -> None:
    folder = Path(__file__).parent / "page"
    for path, (name, kind) in PAGE_FILES.items():
        headers = {**PAGE_HEADERS, "content-type": kind}
        body = (folder / name).read_bytes()
        app.add_api_route(path, _page(with_inputs(body), headers), include_in_schema=False)


def _page(body: bytes, headers: dict[str, str]) -> Callable[[], Any]:
    async def page() -> Response:
        return Response(body, headers=headers)

    return page


def add_errors(app: FastAPI, reject: Callable[[str], None] | None) -> None:
    async def answer_baton_error(request: Request, error: Exception) -> Response:
        if reject is not None and isinstance(error, RequestError) and request.url.path in GENERATING:
            reject(error.code or "invalid_request")
        return error_response(error if isinstance(error, BatonError) else internal_error(), request.url.path)

    app.add_exception_handler(BatonError, answer_baton_error)

    async def answer_framework_error(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404:
            return not_found(request, [str(getattr(route, "path", "")) for route in app.routes])
        if isinstance(error, HTTPException) and error.status_code == 405:
            # The framework names the methods of one route alone, where a path has several.
            here = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
            allow = sorted({method for route in here for method in getattr(route, "methods", None) or ()})
            error = HTTPException(405, headers={"Allow": ", ".join(allow)})
        return await answer_http_exception(request, error)

    app.add_exception_handler(HTTPException, answer_framework_error)


def _post(app: FastAPI, path: str, route: Callable[..., Any], takes: type[BaseModel], answers: type[BaseModel]) -> None:
    # Routes parse their bodies themselves; `openapi.described` has the schema.
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{takes.__name__}"}}}
    app.add_api_route(
        path,
        route,
        methods=["POST"],
        response_model=None,
        responses={200: {"model": answers}},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )


def _get(app: FastAPI, path: str, route: Callable[..., Any], answers: type[BaseModel]) -> None:
    app.add_api_route(path, route, response_model=None, responses={200: {"model": answers}})
