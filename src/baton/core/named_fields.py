"""Which fields of a dataclass were named, so that others can have defaults from elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


class NamedFields:
    """A base of frozen dataclasses whose fields are given by name. `named`: the fields that were given."""

    __slots__ = ("named",)
    named: frozenset[str]

    def __new__(cls, *given: object, **named: object) -> Self:
        made = super().__new__(cls)
        object.__setattr__(made, "named", frozenset(named))
        return made

    def __reduce__(self) -> Any:
        return _made, (type(self), {name: getattr(self, name) for name in self.named})

    def with_defaults(self, defaults: Mapping[str, Any]) -> Self:
        """Returns a copy with these values in fields that were not named. All its fields count as named."""
        missing: dict[str, Any] = {name: value for name, value in defaults.items() if name not in self.named}
        return dataclasses.replace(self, **missing) if missing else self  # type: ignore[type-var]


def _made(kind: type[NamedFields], named: Mapping[str, Any]) -> NamedFields:
    return kind(**named)
