"""How many engines a server has, and what it has not if they are in processes of their own."""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from baton.core.errors import SettingError
from baton.core.limits import flag_of
from baton.core.values import AUTO, number_in

MOST_REPLICAS = 1024
LOSSES = 2
"""So many engines may be lost with a query on board. Then it fails, because it may be what ends them."""
REPLICA_HANDOVER = (AUTO, "keys", "tokens", "off")


class Range(NamedTuple):
    """At least and at most so many engines."""

    least: int
    most: int

    @property
    def scales(self) -> bool:
        return self.least < self.most


class ReplicaSettings(Protocol):
    """The settings that are looked at here; see `Config`."""

    @property
    def replicas(self) -> str | None: ...

    @property
    def replica_gpus(self) -> str: ...


_ONLY_WITH_REPLICAS = {
    **{"ray_address": None, "replica_cpus": AUTO, "replica_gpus": AUTO, "losses": LOSSES},
    **{"replica_handover": AUTO, "prefill_replicas": 0},
}
_NOT_WITH_REPLICAS = {
    "models": "which is for one model: start a server for each",
    "trace": "because each engine would write a file of its own",
    "handover": "whose queries go on in other engines (--replica-handover)",
}


def check_replicas(config: ReplicaSettings) -> None:
    """Raises SettingError for settings that need several engines, and for those that cannot be combined with them."""
    if config.replicas is None:
        for name, default in _ONLY_WITH_REPLICAS.items():
            if getattr(config, name) != default:
                raise SettingError(f"{flag_of(name)} is for several engines: add --replicas", param=name)
        return
    range_of(config.replicas)
    if config.replica_gpus != "0":
        number_in("replica_gpus", config.replica_gpus, 0)
    for name, why in _NOT_WITH_REPLICAS.items():
        if getattr(config, name):
            raise SettingError(f"{flag_of(name)}: not with --replicas, {why}", param=name)


def range_of(text: str) -> Range:
    """Reads "3" or "1-8". Raises SettingError."""
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < least <= most <= MOST_REPLICAS:
        message = f"--replicas {text}: a number from 1 to {MOST_REPLICAS}, or a range like 1-8"
        raise SettingError(message, param="replicas")
    return Range(least, most)
