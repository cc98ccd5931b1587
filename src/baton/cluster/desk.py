"""Which engines Ray Serve has, as its router hears it, for the front in the same process.

Serve copies its router's module by value, so that what the two share must be in a module that the router imports.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

Hear = Callable[[frozenset[str]], None]


class Desk:
    """The names of all engines that are there, and who hears of changes. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: frozenset[str] = frozenset()
        self._hear: list[Hear] = []

    def watch(self, hear: Hear) -> None:
        """`hear` is called with the names now, and with those after each change."""
        with self._lock:
            self._hear.append(hear)
            names = self._names
        hear(names)

    def leave(self, hear: Hear) -> None:
        with self._lock:
            self._hear.remove(hear)

    def there(self, names: frozenset[str]) -> None:
        with self._lock:
            self._names = names
            told = list(self._hear)
        for hear in told:
            hear(names)


DESK = Desk()
