"""How many engines `baton simulate` has behind one front. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from baton.core.replicas import range_of


@dataclass(frozen=True, slots=True)
class Replicas:
    """From `least` to `most` engines; the same number does not scale.

    Looked at every `every` seconds. More come `start_seconds` after they were wanted, and fewer after they were not
    wanted for `patience_seconds`, as Ray Serve is told (`cluster/ray_cluster.py`). `by_prefix`: the front knows which
    engine has which prefix.
    """

    least: int = 1
    most: int = 1
    by_prefix: bool = True
    every: float = 10.0
    start_seconds: float = 30.0
    patience_seconds: float = 60.0


ONE = Replicas()


def replicas_of(text: str, *, by_prefix: bool) -> dict[str, Replicas]:
    """What "1,4" or "2-8" means, by what is added to a contender's name. Raises SettingError."""
    ranges = {one: range_of(one) for one in text.split(",")}
    return {f" x {one}" if text != "1" else "": Replicas(*both, by_prefix) for one, both in ranges.items()}
