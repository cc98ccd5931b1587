"""Has a running server answer the lines of `baton batch`."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets

import httpx

from baton.chat.remote import base_of, is_loopback
from baton.jobs.lines import Answer
from baton.jobs.runner import NoAnswer

_CONNECT_SECONDS, _SILENCE_SECONDS = 10.0, 3600.0
_TRIES, FIRST_PAUSE_SECONDS = 5, 1.0
_MOST_PAUSE_SECONDS = 60.0
_BUSY, _UNAVAILABLE = (429, 503), 503
MOST_UNAVAILABLE_SECONDS = 600.0
"""A line is given up that was answered with 503 for so long: a model that cannot be loaded, or a server that ends."""

_log = logging.getLogger("baton.jobs")


class ServerAsker:
    """Asks any server with OpenAI's routes. Asks a busy server again until it answers."""

    def __init__(self, url: str, api_key: str | None, at_once: int) -> None:
        """Raises SettingError."""
        self._base = base_of(url)
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._at_once = at_once
        self._refusals: set[str] = set()
        self._http: httpx.AsyncClient | None = None

    async def ask(self, url: str, body: bytes, owner: str) -> Answer:
        """Raises NoAnswer if the server cannot be reached, refuses the key, or answers 503 for too long."""
        http = self._client()
        trouble, unavailable = 0, 0.0
        while True:
            try:
                response = await http.post(f"{self._base}{url.removeprefix('/v1')}", content=body)
            except httpx.TransportError as error:
                trouble += 1
                if trouble == _TRIES:
                    raise NoAnswer(f"{self._base} cannot be reached: {str(error) or type(error).__name__}") from None
                await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (trouble - 1))
                continue
            if response.status_code in (401, 403):
                raise NoAnswer(f"{self._base} refuses this key (status {response.status_code})")
            if response.status_code not in _BUSY:
                request_id = response.headers.get("x-request-id") or f"req_{secrets.token_hex(12)}"
                return Answer(response.status_code, request_id, response.content)
            pause = _pause(response.headers.get("retry-after", ""))
            self._tell(response)
            unavailable = unavailable + pause if response.status_code == _UNAVAILABLE else 0.0
            if unavailable > MOST_UNAVAILABLE_SECONDS:
                raise NoAnswer(f"{self._base} has answered 503 for {MOST_UNAVAILABLE_SECONDS:g} s: {_said(response)}")
            await asyncio.sleep(pause)

    def _tell(self, response: httpx.Response) -> None:
        """Says once why lines are asked again."""
        said = _said(response)
        if response.status_code == _UNAVAILABLE and said not in self._refusals:
            self._refusals.add(said)
            _log.warning("%s answers 503 and is asked again: %s", self._base, said)

    def _client(self) -> httpx.AsyncClient:
        """Made on the event loop on which it is used."""
        if self._http is None:
            limits = httpx.Limits(max_connections=self._at_once, max_keepalive_connections=self._at_once)
            timeout = httpx.Timeout(_CONNECT_SECONDS, read=_SILENCE_SECONDS, pool=None)
            trust = not is_loopback(self._base)  # a proxy of the environment cannot reach this machine's own address
            self._http = httpx.AsyncClient(headers=self._headers, limits=limits, timeout=timeout, trust_env=trust)
        return self._http


def _pause(retry_after: str) -> float:
    return min(float(retry_after), _MOST_PAUSE_SECONDS) if retry_after.isdecimal() else 1.0


def _said(response: httpx.Response) -> str:
    """The message of a refusal in OpenAI's form; else how the answer begins."""
    try:
        return str(response.json()["error"]["message"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return response.text[:200]
