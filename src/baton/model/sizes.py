"""How much a method, a filter or an operator of a chat template would make, computed before it is called.

Most make no more than they are given. These make more, or take more than linear time. A size is in characters; an
element of a list takes `ELEMENT` of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from jinja2 import TemplateError

ELEMENT = 32
MOST_BITS = 4096
# A float in full, and what a conversion adds to a value.
_NUMBER = 400
# `repr` and `ascii` write a character as at most so many.
_ESCAPED = 10
# An operation in quadratic time may have so much less of a text; for two texts, their product counts.
_SLOW = 64
_CODECS = frozenset({"utf-8", "utf8", "ascii", "us-ascii", "latin-1", "latin1", "iso-8859-1"})
_ERRORS = frozenset({"strict", "ignore", "replace"})
_DIGITS = re.compile(r"\d+")
# A conversion after the percent sign and its key: flags, width, precision, kind.
_CONVERSION = re.compile(r"[#0\- +]*(\*|[0-9]*)(?:\.(\*|[0-9]*))?[hlL]?(.?)", re.DOTALL)

Weigh = Callable[..., int]
"""The size of a value with all its content; raises if it is above the limit."""
Rule = Callable[..., int]
"""Gets the weighing function, the value and the template's arguments. Returns at least the result's size."""


def weight(value: Any, check: Callable[[int], None], *, each: int = ELEMENT, level: int = 0) -> int:
    """The size of a value with all its content, counted each time it occurs. `check` gets the sum as it grows.

    `each` is added for each element, and `level` for each element and each container around it. Raises TemplateError
    for a number of too many bits.
    """
    total, left = 0, [(value, 1)]
    while left:
        one, depth = left.pop()
        if isinstance(one, (str, bytes)):
            total += len(one)
        elif isinstance(one, int):
            total += check_number(one).bit_length() // 3
        elif isinstance(one, Collection) and not isinstance(one, range):
            total += len(one) * (each + level * depth)
            check(total)
            held = (item for pair in one.items() for item in pair) if isinstance(one, Mapping) else one
            left.extend((item, depth + 1) for item in held)
        check(total)
    return total


def check_number(number: int) -> int:
    if number.bit_length() > MOST_BITS:
        raise TemplateError(f"the chat template computes a number of more than {MOST_BITS} bits")
    return number


def of_number_operator(operator: str, left: int, right: int) -> None:
    """Raises TemplateError if two whole numbers, or their result, have too many bits."""
    check_number(left)
    check_number(right)
    bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * abs(right)}
    if bits.get(operator, 0) > MOST_BITS:
        raise TemplateError(f"the chat template computes a number of more than {MOST_BITS} bits")


def of_printf(weigh: Weigh, template: str | bytes, values: Any) -> int:
    """The size of a format with percent signs."""
    text = template.decode("latin-1") if isinstance(template, bytes) else template
    total, plain = len(text), 0
    for key, width, precision, kind in _conversions(text):
        if "*" in (width, precision):
            raise TemplateError("the chat template formats to a width that it computes")
        total += _whole(width) + _whole(precision) + _NUMBER
        times = _ESCAPED if kind in ("r", "a") else 1
        if key is not None and isinstance(values, Mapping):
            total += weigh(values.get(key)) * times
        else:
            plain = max(plain, times)
    # Without keys each value is written once.
    return total + (plain and plain * weigh(values))


def _conversions(text: str) -> Iterator[tuple[str | None, str, str, str]]:
    """The key, width, precision and kind of each conversion, as Python reads them."""
    at = text.find("%")
    while at >= 0:
        at += 1
        key = None
        if text.startswith("(", at):
            end = _closing(text, at)
            key, at = text[at + 1 : end], end + 1
        match = _CONVERSION.match(text, at)
        assert match is not None  # it matches the empty text too
        yield key, match[1], match[2] or "", match[3]
        at = text.find("%", match.end())


def _closing(text: str, opening: int) -> int:
    depth = 0
    for parenthesis in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if parenthesis[0] == "(" else -1
        if not depth:
            return parenthesis.start()
    raise TemplateError("the chat template has a format with an incomplete key")


def of_field(weigh: Weigh, value: Any, spec: str) -> int:
    """The size of one field of `str.format`; numbers in a spec are a width and a precision."""
    return weigh(value) + sum(map(int, _DIGITS.findall(spec))) + _NUMBER


def of_conversion(weigh: Weigh, value: Any, conversion: str | None) -> int:
    return weigh(value) * (_ESCAPED if conversion in ("r", "a") else 1)


def _whole(digits: Any) -> int:
    return int(digits or 0)


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _padded(weigh: Weigh, text: Any, width: Any = 80, *_: Any, **more: Any) -> int:
    return max(weigh(text), _whole(more.get("width", width)))


def _tabs(weigh: Weigh, text: Any, tabsize: Any = 8) -> int:
    tabs: int = text.count("\t" if isinstance(text, str) else b"\t")
    return len(text) + tabs * max(0, _whole(tabsize))


def _replaced(weigh: Weigh, text: Any, old: Any, new: Any, count: Any = None) -> int:
    text, old, new = (one if isinstance(one, (str, bytes)) else str(one) for one in (text, old, new))
    times: int = text.count(old)
    times = times if count is None or count < 0 else min(times, count)
    return len(text) + times * max(0, len(new) - len(old))


def _translated(weigh: Weigh, text: Any, table: Any, *_: Any, **__: Any) -> int:
    values = table.values() if isinstance(table, Mapping) else ()
    return len(text) * max((_length(value) for value in values), default=1)


def _coded(weigh: Weigh, text: Any, encoding: str = "utf-8", errors: str = "strict") -> int:
    if encoding.lower().replace("_", "-") not in _CODECS or errors not in _ERRORS:
        raise TemplateError(f"the chat template takes the encoding {encoding[:40]!r}, {errors[:40]!r}")
    return 4 * len(text)


def _searched(weigh: Weigh, text: Any, part: Any = None, *_: Any, **more: Any) -> int:
    """Methods that search for each character of a text, or for a text at each character."""
    part = more.get("sep", more.get("chars", part))
    return max(len(text), len(text) * _length(part) // _SLOW)


def _split(weigh: Weigh, text: Any, part: Any = None, *_: Any, **more: Any) -> int:
    part = more.get("sep", part)
    return (text.count(part) + 1) * ELEMENT if part else len(text)


def _split_from_the_end(weigh: Weigh, text: Any, *args: Any, **more: Any) -> int:
    return max(_searched(weigh, text, *args, **more), _split(weigh, text, *args, **more))


def _as_bytes(weigh: Weigh, number: Any, length: Any = 1, *_: Any, **more: Any) -> int:
    return _whole(more.get("length", length))


METHODS: Mapping[str, Rule] = {
    "center": _padded,
    "decode": _coded,
    "encode": _coded,
    "expandtabs": _tabs,
    "ljust": _padded,
    "lstrip": _searched,
    "replace": _replaced,
    "rfind": _searched,
    "rindex": _searched,
    "rjust": _padded,
    "rpartition": _searched,
    "rsplit": _split_from_the_end,
    "rstrip": _searched,
    "split": _split,
    "strip": _searched,
    "to_bytes": _as_bytes,
    "translate": _translated,
    "zfill": _padded,
}
"""Rules for texts, bytes and whole numbers."""


def _indented(weigh: Weigh, text: Any, width: Any = 4, *_: Any, **more: Any) -> int:
    width = more.get("width", width)
    lines = len(str(text).splitlines()) + 1
    return weigh(text) + lines * (len(width) if isinstance(width, str) else _whole(width))


def _as_json(
    weigh: Weigh, value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, *_: Any, **__: Any
) -> int:
    level = len(indent) if isinstance(indent, str) else _whole(indent)
    size = weigh(value, each=ELEMENT + sum(map(len, separators or ())), level=level)
    return 2 * size * (_ESCAPED if ensure_ascii else 1)


def _wrapped(weigh: Weigh, text: Any, width: Any = 79, breaks: Any = True, wrapstring: Any = None, *_: Any) -> int:
    return _SLOW * weigh(text) * max(1, _length(wrapstring))


def _slow(weigh: Weigh, value: Any, *_: Any, **__: Any) -> int:
    return _SLOW * weigh(value)


def _counted(weigh: Weigh, value: Any, count: Any = 1, *_: Any, **more: Any) -> int:
    return ELEMENT * _whole(more.get("slices", more.get("linecount", count)))


def _listed(weigh: Weigh, value: Any, *_: Any, **__: Any) -> int:
    return ELEMENT * _length(value)


def _rounded(weigh: Weigh, value: Any, precision: Any = 0, *_: Any, **more: Any) -> int:
    # It may compute ten to that power.
    return 1024 * abs(_whole(more.get("precision", precision)))


def _trimmed(weigh: Weigh, value: Any, chars: Any = None) -> int:
    return max(weigh(value), weigh(value) * _length(chars) // _SLOW)


FILTERS: Mapping[str, Rule] = {
    "batch": _counted,
    "center": _padded,
    "float": _slow,
    "format": lambda weigh, template, *args, **more: of_printf(weigh, str(template), more or args),
    "indent": _indented,
    "int": _slow,
    "list": _listed,
    "pprint": _slow,
    "replace": lambda weigh, *args, **more: _replaced(weigh, *args, **more),
    "round": _rounded,
    "slice": _counted,
    "sort": _listed,
    "striptags": _slow,
    "tojson": _as_json,
    "trim": _trimmed,
    "urlencode": _slow,
    "urlize": _slow,
    "wordcount": _listed,
    "wordwrap": _wrapped,
    "xmlattr": _slow,
}
