"""The routes of files and batches, and the thread that works on what they keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import Response

from baton.engine.client import Client
from baton.jobs.folder import Folder
from baton.jobs.thread import RunnerThread
from baton.server.background import Background
from baton.server.batches import LISTED, MOST_LISTED, BatchRequest, BatchRoutes, Owners
from baton.server.files import MOST_LISTED as MOST_FILES_LISTED
from baton.server.files import FileRoutes
from baton.server.stored_answers import BatchList, BatchObject, FileDeleted, FileList, FileObject
from baton.server.uploads import KIND
from baton.server.workers import Workers

_TEXT = {"type": "string"}
_UPLOAD = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "Requests, one a line."},
        "purpose": {"type": "string", "enum": ["batch"]},
    },
    "required": ["file", "purpose"],
    "additionalProperties": False,
}
_BYTES = {"description": "The file.", "content": {"application/octet-stream": {"schema": {"type": "string"}}}}


def add_batches(app: FastAPI, folder: Folder, client: Client, workers: Workers, *, keys: bool) -> None:
    """Adds routes over the folder, and works on what is in it until the application drains or closes.

    `keys`: there are some, and files and batches are of the key that they came with.
    """
    background = Background(client, workers)
    thread = RunnerThread(folder, background.ask, background.at_once)

    drain_all: Callable[[float], bool] = app.state.drain
    close_all: Callable[[], None] = app.state.close

    def drain(timeout_seconds: float) -> bool:
        thread.close()
        return drain_all(timeout_seconds)

    def close() -> None:
        thread.close()
        background.close()
        close_all()

    app.state.close, app.state.drain = close, drain
    limits, owners, answers = client.settings.limits, Owners(folder, keys=keys), app.state.answers
    _add_files(app, FileRoutes(folder, owners, workers, answers, limits))
    _add_batches(app, BatchRoutes(folder, thread, owners, workers, answers, limits))


def _add_files(app: FastAPI, routes: FileRoutes) -> None:
    files, one, named = "/v1/files", "/v1/files/{file_id}", _named("file_id")
    upload = {"requestBody": {"required": True, "content": {KIND: {"schema": _UPLOAD}}}}
    app.add_api_route(files, routes.create_file, methods=["POST"], **_described(FileObject, upload))
    query = _query(
        limit=_limit(MOST_FILES_LISTED, MOST_FILES_LISTED),
        after=_TEXT,
        order={"type": "string", "enum": ["asc", "desc"], "default": "desc"},
        purpose=_TEXT,
    )
    app.add_api_route(files, routes.files, **_described(FileList, query))
    app.add_api_route(one, routes.file, **_described(FileObject, named))
    app.add_api_route(one, routes.delete_file, methods=["DELETE"], **_described(FileDeleted, named))
    content: dict[str, Any] = {"response_model": None, "responses": {200: _BYTES}, "openapi_extra": named}
    app.add_api_route(f"{one}/content", routes.file_content, response_class=Response, **content)


def _add_batches(app: FastAPI, routes: BatchRoutes) -> None:
    batches, one, named = "/v1/batches", "/v1/batches/{batch_id}", _named("batch_id")
    schema = {"$ref": f"#/components/schemas/{BatchRequest.__name__}"}
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    app.add_api_route(batches, routes.create_batch, methods=["POST"], **_described(BatchObject, body))
    query = _query(limit=_limit(LISTED, MOST_LISTED), after=_TEXT)
    app.add_api_route(batches, routes.batches, **_described(BatchList, query))
    app.add_api_route(one, routes.batch, **_described(BatchObject, named))
    app.add_api_route(f"{one}/cancel", routes.cancel_batch, methods=["POST"], **_described(BatchObject, named))


def _described(answers: type[BaseModel], more: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"response_model": None, "responses": {200: {"model": answers}}, "openapi_extra": more}


def _query(**parameters: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in parameters.items()]}


def _named(name: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1}
    return {"parameters": [{"name": name, "in": "path", "required": True, "schema": schema}]}


def _limit(usual: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": most, "default": usual}
