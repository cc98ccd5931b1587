"""Answers from any server that speaks OpenAI's chat API."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from baton.chat.clean import one_line
from baton.chat.events import events
from baton.chat.port import Message, Piece
from baton.core.errors import BatonError, SettingError

_CONNECT_SECONDS, _SILENCE_SECONDS = 10.0, 600.0


class ServerError(BatonError):
    """The server cannot be reached, refused, or sent something invalid."""


class Remote:
    """A server and one of its models: the first that it lists, unless one is named. Raises BatonError."""

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        self._base = base_of(url)
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        timeout = httpx.Timeout(_CONNECT_SECONDS, read=_SILENCE_SECONDS)
        # A proxy of the environment cannot reach this machine's own address.
        self._http = httpx.Client(headers=headers, timeout=timeout, trust_env=not is_loopback(self._base))
        models = self._models(needed=model is None)
        if model is None and not models:
            raise ServerError(f"{self._base} lists no model: name one with --model-name")
        self._model = model if model is not None else str(models[0]["id"])
        self.name = one_line(self._model)
        # Other servers may refuse a field that they do not know.
        ours = any(one.get("owned_by") == "baton" for one in models)
        self._extra: dict[str, Any] = {"baton_usage": True} if ours else {"stream_options": {"include_usage": True}}

    def answer(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        asked = {"model": self._model, "messages": [dict(m) for m in messages], "stream": True, **sampling}
        try:
            yield from self._answer(asked | self._extra)
        except _Refused as error:
            if "stream_options" not in self._extra or "stream_options" not in error.message:
                raise
            self._extra = {}
            yield from self._answer(asked)

    def close(self) -> None:
        self._http.close()

    def _answer(self, asked: Mapping[str, Any]) -> Generator[Piece, None, None]:
        body = json.dumps(asked).encode()
        headers = {"content-type": "application/json"}
        with _trouble(self._base):
            url = f"{self._base}/chat/completions"
            with self._http.stream("POST", url, content=body, headers=headers) as response:
                _check(response)
                if "json" in response.headers.get("content-type", ""):
                    yield _plain(_parsed(response.read().decode(errors="replace")))
                    return
                yield from _streamed(response)

    def _models(self, *, needed: bool) -> list[dict[str, Any]]:
        try:
            with _trouble(self._base):
                response = self._http.get(f"{self._base}/models")
                _check(response)
                listed = _parsed(response.text).get("data")
        except _Refused as error:
            if needed or error.status in (401, 403):
                raise
            return []
        return [one for one in listed if isinstance(one, dict) and "id" in one] if isinstance(listed, list) else []


class _Refused(ServerError):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def base_of(url: str) -> str:
    """The API's address: `/v1` below an address without a path, else the address as given. Raises SettingError."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingError(f"{url}: not an address ({error})") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingError(f"{url}: not an address like http://127.0.0.1:8000")
    path = parsed.path.rstrip("/").removesuffix("/chat/completions")
    return str(parsed.copy_with(path=path or "/v1", query=None, fragment=None)).rstrip("/")


def is_loopback(base: str) -> bool:
    host = httpx.URL(base).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def may_be_sent(url: str) -> bool:
    """Whether a key that was not given for this server may be sent there: never in the clear over a network."""
    base = base_of(url)
    return httpx.URL(base).scheme == "https" or is_loopback(base)


@contextmanager
def _trouble(base: str) -> Generator[None, None, None]:
    """The client's errors, in one line each."""
    try:
        yield
    except httpx.ConnectError as error:
        raise ServerError(one_line(f"{base} cannot be reached: {error}")) from None
    except httpx.TimeoutException:
        raise ServerError(f"{base} does not answer") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(one_line(f"{base}: the connection ended: {error or type(error).__name__}")) from None


def _check(response: httpx.Response) -> None:
    """Raises the error of a response that is not 200."""
    if response.status_code == 200:
        return
    text = response.read().decode(errors="replace")
    try:
        said = _message(json.loads(text))
    except ValueError:
        said = text
    hint = {401: "; give its key with --api-key", 404: "; is this the address of the API?"}
    words = one_line(f"{said or response.reason_phrase}")
    raise _Refused(
        f"the server answered {response.status_code}: {words}{hint.get(response.status_code, '')}", response.status_code
    )


def _message(body: Any) -> str:
    """The message in OpenAI's error body, or in other servers' bodies."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else json.dumps(error)


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerError(one_line(f"the server says what is not OpenAI's API: {text}", 160))
    return value


def _streamed(response: httpx.Response) -> Generator[Piece, None, None]:
    """Raises ServerError for an error in the stream, and if the stream ends before the answer does."""
    ended = False
    for name, data in events(response.iter_bytes()):
        if data.strip() == "[DONE]":
            return
        chunk = _parsed(data)
        if name == "error" or chunk.get("error"):
            raise ServerError(one_line(f"the server failed: {_message(chunk)}"))
        choice: dict[str, Any] = next(iter(chunk.get("choices") or []), {})
        ended = ended or choice.get("finish_reason") is not None
        yield _piece(choice.get("delta") or {}, choice, chunk)
    if not ended:
        raise ServerError("the connection ended in the middle of the answer")


def _plain(answer: dict[str, Any]) -> Piece:
    choice: dict[str, Any] = next(iter(answer.get("choices") or []), {})
    return _piece(choice.get("message") or {}, choice, answer)


def _piece(said: Mapping[str, Any], choice: Mapping[str, Any], chunk: Mapping[str, Any]) -> Piece:
    text, thought = said.get("content"), said.get("reasoning_content") or said.get("reasoning")
    usage = chunk.get("usage") or {}
    spent = usage.get("baton") or {}
    return Piece(
        text if isinstance(text, str) else "",
        thought if isinstance(thought, str) else "",
        choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens"),
        generated_tokens=usage.get("completion_tokens"),
        queue_seconds=spent.get("queue_seconds"),
        idle_ratio=spent.get("idle_ratio"),
    )
