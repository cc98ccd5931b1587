"""The chat page's inputs for sampling fields, made from their one table."""

from __future__ import annotations

import re
from html import escape

from baton.core.sampling import SAMPLING_FIELDS, SamplingField

_PLACE = re.compile(rb"<!-- sampling: (\w+) -->")
# JavaScript's whole numbers are exact up to here.
_MOST_IN_SCRIPTS = 2**53 - 1


def with_inputs(page: bytes) -> bytes:
    """Returns a page with the inputs of a group of fields at each place that is marked for them."""
    return _PLACE.sub(lambda place: _inputs(place[1].decode()).encode(), page)


def _inputs(group: str) -> str:
    return "\n".join(_input(known) for known in SAMPLING_FIELDS if known.group == group)


def _input(known: SamplingField) -> str:
    label = known.name.removesuffix("_penalty").replace("_", " ").capitalize()
    hint = f" <small>{escape(known.hint)}</small>" if known.hint else ""
    whole = known.kind is int
    most = f' max="{_MOST_IN_SCRIPTS}"' if whole and known.high > _MOST_IN_SCRIPTS else ""
    unset = known.unset or f"{known.default:g}"
    return (
        f'<label title="{escape(known.about)}">{label}{hint}<input name="{known.name}" type="number" '
        f'step="{1 if whole else "any"}"{most} placeholder="{escape(unset)}"></label>'
    )
