"""Where engines are, and how messages come to them: a pipe, a socket, a cluster. The front sees this alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from baton.cluster.wire import Message
from baton.core.errors import BatonError
from baton.kv.parcel import Parcel


class EngineLost(BatonError):
    """An engine is not there any more."""

    code = "engine_lost"


class Hearing(Protocol):
    """What engines tell a front. Called by any thread, for each engine in order."""

    def heard(self, engine: str, message: Message) -> None:
        """News of an engine: once per iteration in which there was any, and at least once a second."""

    def took(self, engine: str, query_ids: Sequence[str]) -> None:
        """These queries have come to the engine."""

    def lost(self, engine: str) -> None:
        """No more news will come of this engine: it has ended."""

    def came(self, engine: str) -> None:
        """There is a new engine."""

    def leaves(self, engine: str) -> None:
        """The engine ends soon: it takes nothing more, and its queries go on elsewhere."""


class Engines(Protocol):
    """Engines by name. All but `names` may take time, and raise EngineLost. Safe to call from any thread."""

    def names(self) -> Sequence[str]:
        """The engines that take asks now."""

    def prefill_names(self) -> Sequence[str]:
        """Those that compute prompts up to the first token, for the others."""

    def listen(self, hearing: Hearing) -> None: ...

    def start(self, engine: str, asks: Sequence[Message]) -> None: ...

    def cancel(self, engine: str, query_ids: Sequence[str]) -> None: ...

    def give(self, engine: str, query_ids: Sequence[str] | None = None, without_keys: Sequence[str] = ()) -> None:
        """These queries leave the engine: the last update of each is "moved".

        All if None, and whatever it is asked later, because it ends. Keys and values go along, but of `without_keys`.
        """

    def abandon(self, engine: str) -> None:
        """The engine hangs: it is asked nothing more, and is to be ended and started again."""

    def close(self) -> None: ...


class Depot(Protocol):
    """Where an engine lays down keys and values for another one. The front passes on what `put` returned, unread."""

    def put(self, parcel: Parcel) -> Any:
        """Keeps a parcel, whose bytes are copied, and returns where it is. May raise anything: then it is not kept."""

    def get(self, where: Any) -> Parcel:
        """Returns a parcel that an engine has put, once. May raise anything if it is not there any more."""
