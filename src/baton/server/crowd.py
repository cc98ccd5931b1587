"""All connections of a server, bounded in number. Idle ones make room for new ones."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Hashable
from typing import Any

try:
    import resource
except ImportError:  # there is none on Windows, nor such a limit
    resource = None  # type: ignore[assignment]

SPARE_FILES = 32
"""Left for everything but connections: files of the model and the machine, and connections that are refused."""
ACCEPTED_AT_ONCE = 4
"""Connections that are taken before the first of them is read; each is a file already."""

_REFUSED_AT_ONCE = 8
_LINE_SECONDS = 1.0
_FEWEST = 4
_SHORT = "socket.accept() out of system resource"

_log = logging.getLogger("baton.server")


class Crowd:
    """At most `most` connections. `leave` closes one at once."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._open: set[Hashable] = set()
        self._idle: dict[Hashable, Callable[[], None]] = {}  # the one that has waited longest comes first
        self._refused: set[Hashable] = set()
        self._last_warning: float | None = None

    def admit(self, member: Hashable) -> bool:
        """Returns whether there is room for the member, or whether an idle one could be closed for it."""
        if len(self._open) >= self.most and not self._shed():
            return False
        self._open.add(member)
        return True

    def refuse(self, member: Hashable) -> bool:
        """Returns whether a member that is not admitted may stay until it has read why."""
        if len(self._refused) >= _REFUSED_AT_ONCE:
            return False
        self._refused.add(member)
        return True

    def waits(self, member: Hashable, leave: Callable[[], None]) -> None:
        """The member waits for a request from now on."""
        if member in self._open:
            self._idle.setdefault(member, leave)

    def works(self, member: Hashable) -> None:
        self._idle.pop(member, None)

    def left(self, member: Hashable) -> None:
        self._idle.pop(member, None)
        self._open.discard(member)
        self._refused.discard(member)

    def files_ran_out(self) -> None:
        """Makes room, and logs it at most once a second."""
        now = self._clock()
        if self._last_warning is not None and now - self._last_warning < _LINE_SECONDS:
            return
        self._last_warning = now
        shed = sum(self._shed() for _ in range(ACCEPTED_AT_ONCE))
        message = "no file descriptors are left (ulimit -n), new connections wait: %d of %d that did nothing are closed"
        _log.warning(message, shed, len(self._open) + shed)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listens to the event loop for a lack of files, which would else be a traceback at each attempt."""

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if context.get("message") == _SHORT:
                self.files_ran_out()
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(handle)

    def _shed(self) -> bool:
        if not self._idle:
            return False
        member = next(iter(self._idle))
        leave = self._idle[member]
        self.left(member)
        leave()
        return True


def fitting(most: int) -> int:
    """Returns so many connections, or fewer if this process may not open as many files."""
    if resource is None:
        return most
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    return max(_FEWEST, min(most, soft - _open_files() - SPARE_FILES))


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return SPARE_FILES
