"""Two processes that take turns, so that both meet the same moments of a machine that is never the same twice.

On one machine runs of a second differ by 10 to 45 %, because of neighbours and clocks. Iterations of two engines that
follow each other within a millisecond do not.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any, Protocol

from baton.core.clock import Clock, monotonic
from baton.core.errors import BatonError, SettingError

PATIENCE_SECONDS = 600.0
_AGAIN_SECONDS = 0.1
_READY, _YOURS, _ENDED = b"r", b"t", b"e"


class OtherIsGone(BatonError):
    """The process that took turns with this one has ended, or hangs."""

    exit_status = 1


class Turns(Protocol):
    """Whose turn it is."""

    def begin(self) -> str:
        """Waits until the other process is ready for its next run too. Returns the name of this pair of runs."""

    def take(self) -> None:
        """Returns when it is this process's turn."""

    def give(self) -> None: ...

    def end(self) -> None:
        """This process's run is over: all turns are the other's."""


class _NoTurns:
    """For a process that has the machine for itself."""

    def begin(self) -> str:
        return ""

    def take(self) -> None: ...

    def give(self) -> None: ...

    def end(self) -> None: ...


NO_TURNS: Turns = _NoTurns()


class Interleaved:
    """One end of the two. `first`: whether this one begins the first run; they alternate from run to run."""

    def __init__(self, pipe: socket.socket, name: str, first: bool) -> None:
        self._pipe = pipe
        self._name = name
        self._first = first
        self._runs = 0
        self._mine = self._alone = False

    def begin(self) -> str:
        self._send(_READY)
        while self._receive() != _READY:
            pass  # what is left of the run before
        self._mine = self._first == (self._runs % 2 == 0)
        self._alone = False
        self._runs += 1
        return f"{self._name}-{self._runs}"

    def take(self) -> None:
        if not (self._mine or self._alone):
            self._alone = self._receive() == _ENDED
            self._mine = True

    def give(self) -> None:
        if not self._alone:
            self._mine = False
            self._send(_YOURS)

    def end(self) -> None:
        self._send(_ENDED)

    def close(self) -> None:
        self._pipe.close()

    def _send(self, what: bytes) -> None:
        # If the other is gone or does not read any more, its waiting side notices.
        with contextlib.suppress(OSError):
            self._pipe.sendall(what)

    def _receive(self) -> bytes:
        try:
            received = self._pipe.recv(1)
        except OSError as error:
            raise OtherIsGone(f"the other bench does not take its turns ({error})") from None
        if not received:
            raise OtherIsGone("the other bench, which took turns with this one, is gone")
        return received


def handshake(port: int, about: Mapping[str, Any], *, patience_seconds: float = PATIENCE_SECONDS) -> Interleaved:
    """Connects with the other process at this local port; the first one waits.

    Raises OtherIsGone after so many seconds. Raises SettingError in both if the other's `about` differs.
    """
    until = monotonic() + patience_seconds
    while monotonic() < until:
        pipe, first = _waited(port, until), True
        if pipe is None:
            pipe, first = _called(port), False
        if pipe is not None:
            pipe.settimeout(patience_seconds)
            pipe.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _introduced(pipe, about, first)
        time.sleep(_AGAIN_SECONDS)
    raise OtherIsGone(f"no other bench came to --in-turn {port} within {patience_seconds:.0f} s")


def _waited(port: int, until: float) -> socket.socket | None:
    """The connection of the other; None if the port is taken, by the other, or if nobody came."""
    with socket.socket() as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(1)
            listener.settimeout(max(0.001, until - monotonic()))
            return listener.accept()[0]
        except OSError:
            return None


def _called(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port))
    except OSError:
        return None


def _introduced(pipe: socket.socket, about: Mapping[str, Any], first: bool) -> Interleaved:
    name = secrets.token_hex(4)
    try:
        pipe.sendall(json.dumps({"name": name, "about": about}).encode() + b"\n")
        received = b""
        while not received.endswith(b"\n"):
            if not (some := pipe.recv(1)):
                raise OtherIsGone("the other bench is gone")
            received += some
        other = json.loads(received)
        name, theirs = (name if first else other["name"]), other["about"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        pipe.close()
        raise OtherIsGone(f"what came to --in-turn is no bench ({type(error).__name__})") from None
    mine = json.loads(json.dumps(about))
    for what in {**mine, **theirs}:
        if mine.get(what) != theirs.get(what):
            pipe.close()
            message = f"the other bench's {what} is {theirs.get(what)}, not {mine.get(what)}"
            raise SettingError(message, param="in_turn")
    return Interleaved(pipe, name, first)


class OwnTime:
    """Seconds of this process's own turns: it stands still while the other has its turn."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._before = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        return self._before + (0.0 if self._since is None else self._clock() - self._since)

    def start(self) -> None:
        self._since = self._clock()

    def stop(self) -> None:
        self._before, self._since = self(), None
