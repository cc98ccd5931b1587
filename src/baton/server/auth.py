"""Who may ask: the keys, this server's names, and the origins whose pages may read answers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from baton.core.errors import RequestError, SettingError
from baton.core.files import named, read_text
from baton.core.settings import ServerSettings
from baton.server.errors import error_response, of_messages

ANY = "*"
# No web page can have its own name among the last two: Docker gives the one, multicast DNS the other.
_LOCAL = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "host.docker.internal"})
_LOCAL |= {f"{socket.gethostname().partition('.')[0].lower()}.local"}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/]+)(:[0-9]{1,5})?", re.IGNORECASE)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_MOST_KEY_BYTES = 2**20
_SECRET = secrets.token_bytes(16)

_log = logging.getLogger("baton.server")


@dataclass(frozen=True, slots=True)
class Access:
    """What a request must have to be let in.

    `keys`: if there are any, a request must have one of them. `hosts`: names that the Host header may have besides
    addresses, None for any. `origins`: origins whose pages may read answers, "*" for all.
    """

    keys: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()


OPEN = Access()
"""Everyone may ask, under any name; no page of another origin may read the answers."""


def access_of(asked: ServerSettings, address: str) -> Access:
    """Returns what the settings ask for at this address. Reads the key file. Raises SettingError."""
    keys = (*asked.api_key, *(_keys_in(asked.api_key_file) if asked.api_key_file else ()))
    hosts: frozenset[str] | None = None
    if ANY not in asked.allowed_host and (asked.allowed_host or (is_loopback(address) and not keys)):
        hosts = frozenset(_LOCAL | {name.lower() for name in (asked.host, *asked.allowed_host)})
    for origin in asked.cors_origin:
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            message = f"--cors-origin {origin}: must be * or an origin like https://example.org, without a path"
            raise SettingError(message, param="cors_origin")
    return Access(keys, hosts, asked.cors_origin)


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


class Keys:
    """API keys. Digests are compared, each with all of them, so that the time taken reveals nothing about any key."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: bytes) -> bool:
        """Whether an Authorization header has one of the keys as a bearer token."""
        scheme, key = _parted(authorization)
        sent = _digest(key)
        matches = [hmac.compare_digest(sent, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def authorization_of(scope: Scope) -> bytes:
    """The request's Authorization header. Clients of Messages send their key in another header."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    key = headers.get(b"x-api-key", b"") if of_messages(scope["path"]) else b""
    return headers.get(b"authorization") or (b"Bearer " + key if key else b"")


def asker(scope: Scope) -> str:
    """Returns who asks: the digest of the request's key under a secret of this process; "" without a key.

    The key itself is kept nowhere else. However the header is written, the digest is the same.
    """
    key = key_of(scope)
    return hashlib.blake2b(key, key=_SECRET, digest_size=16).hexdigest() if key else ""


def key_of(scope: Scope) -> bytes:
    """The key that came with a request; nothing without one."""
    return _parted(authorization_of(scope))[1]


class Hosts:
    """The host names that requests may be sent to. A name that a web page chose must not be among them.

    A page can make its own name point to this machine and then read answers as if they were its own (DNS rebinding). It
    cannot do so with an address, which is therefore always allowed.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def admit(self, host: bytes) -> bool:
        match = _HOST.fullmatch(host.decode("latin-1"))
        if not match:
            return False
        name = match[1].lower().removesuffix(".")
        return name in self._names or name.endswith(".localhost") or _is_address(name.strip("[]"))


class Origins(CORSMiddleware):
    """Lets pages of these origins read answers, and answers browsers' preflight requests. Never with credentials."""

    def __init__(self, app: ASGIApp, *, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=(ANY,),
            expose_headers=("x-request-id", "retry-after", "x-baton-ignored", "x-baton-stream"),
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        refused = error_response(RequestError(bytes(response.body).decode()))
        refused.headers["vary"] = response.headers["vary"]
        return refused


def _keys_in(name: str) -> tuple[str, ...]:
    text = read_text("--api-key-file", name, param="api_key_file", most_bytes=_MOST_KEY_BYTES)
    with named("--api-key-file", name, param="api_key_file"):
        mode = os.stat(name).st_mode
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise SettingError(f"--api-key-file {name}: has no key", param="api_key_file")
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("--api-key-file %s can be read by others: chmod 600 it", name)
    return keys


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _parted(authorization: bytes) -> tuple[bytes, bytes]:
    """The scheme, and what follows it."""
    scheme, _, key = authorization.partition(b" ")
    return scheme, key.strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
