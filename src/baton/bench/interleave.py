"""Two processes that take turns, so that both meet the same moments of a machine that is never the same twice.

On one machine runs of a second lie 10 to 45 % apart, because of neighbours and clocks. Iterations of two engines that
follow each other at a millisecond's distance do not.
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
        """Waits until the other is ready for its next run, too. Answers the name that this pair of runs has."""

    def take(self) -> None:
        """Returns when it is this one's turn."""

    def give(self) -> None: ...

    def end(self) -> None:
        """This one's run is over: all turns are the other's."""


class _NoTurns:
    """For who has the machine for itself."""

    def begin(self) -> str:
        return ""

    def take(self) -> None: ...

    def give(self) -> None: ...

    def end(self) -> None: ...


NO_TURNS: Turns = _NoTurns()


class Interleaved:
    """One end of the two. `first`: whether this one begins the first run; they change places from run to run."""

    def __init__(self, pipe: socket.socket, name: str, first: bool) -> None:
        self._pipe = pipe
        self._name = name
        self._first = first
        self._runs = 0
        self._mine = self._alone = False

    def begin(self) -> str:
        self._send(_READY)
        while self._hear() != _READY:
            pass  # what is left of the run before
        self._mine = self._first == (self._runs % 2 == 0)
        self._alone = False
        self._runs += 1
        return f"{self._name}-{self._runs}"

    def take(self) -> None:
        if not (self._mine or self._alone):
            self._alone = self._hear() == _ENDED
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
        # Where it is gone, or has nothing more to hear, who waits for it finds out.
        with contextlib.suppress(OSError):
            self._pipe.sendall(what)

    def _hear(self) -> bytes:
        try:
            heard = self._pipe.recv(1)
        except OSError as error:
            raise OtherIsGone(f"the other bench does not take its turns ({error})") from None
        if not heard:
            raise OtherIsGone("the other bench, which took turns with this one, is gone")
        return heard


def handshake(port: int, about: Mapping[str, Any], *, patience_seconds: float = PATIENCE_SECONDS) -> Interleaved:
    """The other that comes to this port of the machine: who is first waits. Raises OtherIsGone after so many seconds.

    Raises SettingError where the other's `about` differs, in both.
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
    """Who came; None where the port is taken, which is by the other, and where nobody came."""
    with socket.socket() as door:
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(("127.0.0.1", port))
            door.listen(1)
            door.settimeout(max(0.001, until - monotonic()))
            return door.accept()[0]
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
        heard = b""
        while not heard.endswith(b"\n"):
            if not (some := pipe.recv(1)):
                raise OtherIsGone("the other bench is gone")
            heard += some
        other = json.loads(heard)
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
    """Seconds of this process' own turns: it stands still while the other has its turn."""

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
