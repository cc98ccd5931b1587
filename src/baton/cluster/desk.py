"""Which engines Ray Serve has, as its router hears it, for the front in the same process.

Serve copies its router's module by value, so that what the two share must be in a module that the router imports.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

Hear = Callable[[str, str, frozenset[str]], None]
"""Called with an application, its deployment, and the engines that this has now."""


class Desk:
    """The names of all engines that are there, and who hears of changes. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[tuple[str, str], frozenset[str]] = {}
        self._hear: list[Hear] = []

    def watch(self, hear: Hear) -> None:
        """`hear` is called with the names now, and with those after each change."""
        with self._lock:
            self._hear.append(hear)
            known = dict(self._names)
        for where, names in known.items():
            hear(*where, names)

    def leave(self, hear: Hear) -> None:
        with self._lock:
            self._hear.remove(hear)

    def there(self, app: str, deployment: str, names: frozenset[str]) -> None:
        with self._lock:
            self._names[app, deployment] = names
            told = list(self._hear)
        for hear in told:
            hear(app, deployment, names)


DESK = Desk()
