"""The answer to a path without a route: the route that was meant, and a page for browsers."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from baton.server.errors import NotFound, cut, error_response

PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
}
_EMBEDDINGS = (
    "what a causal language model makes of a text is no good embedding: "
    "a server made for embeddings, such as text-embeddings-inference, is"
)
_NOT_HERE: Mapping[str, str] = {
    "embeddings": _EMBEDDINGS,
    "embed": _EMBEDDINGS,
    "api/embed": _EMBEDDINGS,
    "api/embeddings": _EMBEDDINGS,
    "rerank": "a server made for reranking has it",
    "score": "a server made for reranking has it",
    "audio/speech": "this model makes text alone",
    "audio/transcriptions": "this model takes text alone",
    "images/generations": "this model makes text alone",
    "api/chat": "POST /v1/chat/completions has conversations",
    "api/generate": "POST /v1/completions has prompts",
    "api/tags": "GET /v1/models lists the model",
    "generate": "POST /v1/completions has prompts",
    "props": "GET /v1/models and /tokenizer_info tell of the model",
    "slots": "GET /load tells how the engine is",
}
"""What clients ask for without /v1 in front."""
_WITH_BATCHES = ("files", "batches")
_MOST_CHARACTERS = 64
_MARK = "<!-- what -->"
_PAGE = (Path(__file__).parent / "page" / "not-found.html").read_text()


def not_found(request: Request, known: Collection[str]) -> Response:
    """The 404 of this request. `known`: all paths that have a route."""
    path = request.url.path
    message = f"there is no {request.method} {cut(path, _MOST_CHARACTERS)}: {instead_of(path, known)}"
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        headers = {**PAGE_HEADERS, "content-type": "text/html; charset=utf-8", "vary": "accept"}
        return Response(_PAGE.replace(_MARK, html.escape(message)), 404, headers)
    return error_response(NotFound(message), path)


def instead_of(path: str, known: Collection[str]) -> str:
    """Returns the path that the client may have meant."""
    bare = re.sub(r"^(/v1)+(?=/|$)", "", path.rstrip("/") or "/")
    if (reason := _NOT_HERE.get(bare.lstrip("/"))) is not None:
        return reason
    if bare.split("/")[1:2] and bare.split("/")[1] in _WITH_BATCHES and "/v1/batches" not in known:
        return "no files and batches are kept: --batch-dir DIR has a server of one model do so"
    if bare.startswith("/baton/streams") and "/v1/baton/streams/{stream_id}" not in known:
        return "no answers are kept: --handover DIR has a server of one model do so"
    under = f"/v1{bare}"
    if under in known:
        return f"it is under /v1, as {under}"
    if bare in known:
        return f"it is {bare}"
    routes = [route for route in known if "{" not in route]
    near = difflib.get_close_matches(path[:_MOST_CHARACTERS], routes, 1)
    return f"did you mean {near[0]}?" if near else "/docs lists all routes"
