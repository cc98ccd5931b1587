"""Fields of requests in general: strict models, and what is taken without effect before they read the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from baton.core.errors import Unsupported, quoted
from baton.server.errors import from_validation
from baton.server.field_rules import REQUEST, Place, Rules, name_in_report


class Strict(BaseModel):
    """A JSON object whose types are not converted, and which has no unknown fields.

    `ignored`: fields that were taken without effect, by the names of `field_rules.REPORTED`.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    inner: ClassVar[Mapping[str, Place]] = {}
    rules: ClassVar[Rules] = REQUEST
    _ignored: tuple[str, ...] = PrivateAttr(default=())

    @classmethod
    def read(cls, sent: Mapping[str, object]) -> Self:
        """Reads the request in a JSON object. Raises RequestError with the name of the first wrong field."""
        ignored: set[str] = set()
        kept = without_ignored(sent, place_of(cls, "", cls.rules, cls.inner), ignored)
        try:
            request = cls.model_validate(kept)
        except ValidationError as error:
            raise from_validation(error) from None
        request._ignored = tuple(sorted(ignored))
        return request

    @property
    def ignored(self) -> tuple[str, ...]:
        return self._ignored


def place_of(
    model: type[BaseModel], path: str, rules: Rules, inner: Mapping[str, Place] | None = None, **only_for: str
) -> Place:
    """The `Place` of the objects that this model reads."""
    return Place(path, frozenset(model.model_fields), rules, inner or {}, only_for)


def without_ignored(sent: Mapping[str, object], place: Place, ignored: set[str], where: str = "") -> dict[str, object]:
    """Returns the fields of an object that are to be honoured.

    Adds the names of those taken without effect to `ignored`. `where`: the object's path in the request, for errors.
    Raises Unsupported for fields that are refused.
    """
    if place.kinds:
        return _of_its_kind(sent, place, ignored, where)
    kept: dict[str, object] = {}
    for name, value in sent.items():
        if value is None:
            continue
        rule = place.rules.get(name)
        honoured = place.honoured is None or name in place.honoured
        if honoured and place.only_for.get(name) not in (None, sent.get("role")):
            honoured = False
        if honoured:
            kept[name] = _inside(value, place.inner[name], ignored, where + name) if name in place.inner else value
        elif rule is None:
            raise Unsupported(f"unknown field {where}{name}", param=f"{where}{name}")
        elif rule.takes(value):
            ignored.add(name_in_report(place.path, name))
        else:
            instead = rule.instead or "leave it out"
            raise Unsupported(f"{where}{name} is not honoured: {instead}", param=f"{where}{name}")
    return kept


def _of_its_kind(sent: Mapping[str, object], place: Place, ignored: set[str], where: str) -> dict[str, object]:
    first = next(iter(place.kinds))
    kind = first if sent.get("type") is None else sent["type"]
    if not isinstance(kind, str):
        return dict(sent)
    inner = place.kinds.get(kind)
    if inner is None:
        honoured = "only text is" if list(place.kinds) == ["text"] else f"only {', '.join(place.kinds)}"
        raise Unsupported(f"{where}type {quoted(kind)} is not honoured: {honoured}", param=f"{where}type")
    return without_ignored(sent, inner, ignored, where)


def _inside(value: object, place: Place, ignored: set[str], where: str) -> object:
    """Reads an object or a list of objects. Any other value is left for the model to refuse."""
    if isinstance(value, dict):
        return without_ignored(value, place, ignored, f"{where}.")
    if isinstance(value, list):
        return [
            without_ignored(one, place, ignored, f"{where}[{at}].") if isinstance(one, dict) else one
            for at, one in enumerate(value)
        ]
    return value
