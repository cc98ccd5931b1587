"""How many engines `baton simulate` has behind one front. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from baton.core.errors import SettingError

MOST_REPLICAS = 1024


@dataclass(frozen=True, slots=True)
class Replicas:
    """From `least` to `most` engines; the same number does not scale.

    Looked at every `every` seconds. More come `start_seconds` after they were wanted, and fewer after they were not
    wanted for `patience_seconds`. `by_prefix`: the front knows which engine has which prefix.
    """

    least: int = 1
    most: int = 1
    by_prefix: bool = True
    every: float = 10.0
    start_seconds: float = 30.0
    patience_seconds: float = 600.0


ONE = Replicas()


def replicas_of(text: str, *, by_prefix: bool) -> dict[str, Replicas]:
    """What "1,4" or "2-8" means, by what is added to a contender's name. Raises SettingError."""
    found: dict[str, Replicas] = {}
    for one in text.split(","):
        least, dash, most = one.partition("-")
        try:
            replicas = Replicas(int(least), int(most if dash else least), by_prefix)
        except ValueError:
            replicas = Replicas(0)
        if not 1 <= replicas.least <= replicas.most <= MOST_REPLICAS:
            message = f"--replicas {text}: must be like 1,4 or 1-8, and at most {MOST_REPLICAS}"
            raise SettingError(message, param="replicas")
        found[f" x {one}" if text != "1" else ""] = replicas
    return found
