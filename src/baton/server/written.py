"""JSON in pieces, so that Python's lock is never held for all of a large answer, on whatever thread it is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

_ITEMS = 256
_CHARACTERS = 64 * 2**10
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def written(value: object) -> bytes:
    """Returns a JSON value in UTF-8, without blanks.

    Long lists of small values and long texts are taken piece by piece.
    """
    return "".join(_pieces(value)).encode()


def _pieces(value: object) -> Iterator[str]:
    if isinstance(value, str) and len(value) > _CHARACTERS:
        yield '"'
        yield from (_json(value[at : at + _CHARACTERS])[1:-1] for at in range(0, len(value), _CHARACTERS))
        yield '"'
    elif isinstance(value, list) and len(value) > _ITEMS:
        slices = (_json(value[at : at + _ITEMS])[1:-1] for at in range(0, len(value), _ITEMS))
        yield from _joined("[", ([one] for one in slices), "]")
    elif isinstance(value, list):
        yield from _joined("[", map(_pieces, value), "]")
    elif isinstance(value, dict):
        yield from _joined("{", ((_json(name), ":", *_pieces(inner)) for name, inner in value.items()), "}")
    else:
        yield _json(value)


def _joined(opening: str, parts: Iterable[Iterable[str]], closing: str) -> Iterator[str]:
    before = opening
    for part in parts:
        yield before
        yield from part
        before = ","
    yield closing if before == "," else opening + closing
