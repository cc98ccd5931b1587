"""Keys and values that wait for another engine: in Ray's object store, from which nodes fetch them themselves."""

from __future__ import annotations

import threading
from typing import Any

import ray

from baton.kv.parcel import Parcel

_FETCH_SECONDS = 20.0


class RayDepot:
    """The `Depot` of one engine. An object is lost with the process that has put it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._put = 0

    @property
    def used(self) -> bool:
        """Whether something was put, which others may still have to fetch."""
        return self._put > 0

    def put(self, parcel: Parcel) -> Any:
        with self._lock:
            self._put += 1
        return ray.put((dict(parcel.header), list(parcel.parts)))

    def get(self, where: Any) -> Parcel:
        header, parts = ray.get(where, timeout=_FETCH_SECONDS)
        # What the store lends may not be written to, and segments are.
        return Parcel(header, [part.copy() for part in parts])
