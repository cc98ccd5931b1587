"""JSON without repeated names, because readers differ in which of two equal names counts."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 64


class RepeatedName(ValueError):
    """An object has a name twice; `name` is its beginning."""

    def __init__(self, name: str) -> None:
        self.name = name[:_SHOWN]
        super().__init__(f"the name {self.name!r} is in an object twice")


def unrepeated(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """For `json.loads(object_pairs_hook=...)`. Raises RepeatedName."""
    by_name = dict(pairs)
    if len(by_name) == len(pairs):
        return by_name
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise RepeatedName(name)
        seen.add(name)
    raise AssertionError("fewer names than pairs, and none twice")
