"""Reads values of settings from texts and checks them against their field."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing

from baton.core.errors import SettingError
from baton.core.limits import flag_of

AUTO = "auto"


def parse_bytes(text: str, name: str) -> int:
    """Bytes of a size like "4GiB", "500MB" or "1048576". Raises SettingError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not match:
        raise SettingError(f"{flag_of(name)} {text}: not a size like 4GiB or 500MB", param=name)
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit or " "))


def number_in(name: str, text: str, auto: int) -> int:
    """Returns a whole number, or `auto` for "auto". Raises SettingError."""
    if text == AUTO:
        return auto
    if not re.fullmatch(r"0*[1-9][0-9]{0,17}", text):
        raise SettingError(f"{flag_of(name)} {text}: must be a whole number above 0, or auto", param=name)
    return int(text)


def checked(known: dataclasses.Field[typing.Any], kind: typing.Any, value: object) -> object:
    flag = flag_of(known.name)
    plain = next(k for k in (typing.get_args(kind) or (kind,)) if k is not types.NoneType)
    try:
        if typing.get_origin(kind) is tuple:
            value = _texts(value)
        elif known.metadata.get("size"):
            value = parse_bytes(str(value), known.name)
        else:
            value = _plain(plain, value)
    except (ValueError, TypeError):
        if known.default == ():  # a wrong value of a key may still be a secret
            raise SettingError(f"{flag}: must be texts, none of them empty", param=known.name) from None
        raise SettingError(f"{flag} {value!r}: must be of type {plain.__name__}", param=known.name) from None
    if known.metadata.get("number"):
        number_in(known.name, str(value), 1)
    elif known.metadata.get("memory") and value != AUTO:
        parse_bytes(str(value), known.name)
    choices, low, high = (known.metadata.get(key) for key in ("choices", "low", "high"))
    if choices and value not in choices:
        raise SettingError(f"{flag} {value}: must be one of {', '.join(choices)}", param=known.name)
    if (low is not None and value < low) or (high is not None and value > high):
        raise SettingError(f"{flag} {value}: must be between {low} and {high or 'any number'}", param=known.name)
    return value


def _plain(kind: type, value: object) -> object:
    """The value as a bool, str, int or float. Raises ValueError or TypeError."""
    if kind is bool:
        return _boolean(value)
    if isinstance(value, bool):
        raise TypeError
    if kind is str:
        if not isinstance(value, (str, int)):
            raise TypeError
        return str(value)
    number = kind(value)
    if not math.isfinite(number) or (isinstance(value, float) and number != value):
        raise ValueError
    return number


def _texts(value: object) -> tuple[str, ...]:
    """A text split at its commas, or a list of such texts."""
    values = [value] if isinstance(value, (str, int)) and not isinstance(value, bool) else value
    if not isinstance(values, (list, tuple)):
        raise TypeError
    texts = tuple(text.strip() for one in values for text in str(one).split(","))
    if not all(texts):
        raise ValueError
    return texts


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]
