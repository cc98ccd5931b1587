"""Sums and differences: short ones answered directly, longer ones column by column."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from baton.builtin.kinds import Fields, Kind

MAX_DIGITS = 4
_PLACES = "abcde"


def _operands(fields: Fields) -> tuple[int, int]:
    a, b = int(fields["a"]), int(fields["b"])
    if max(a, b) >= 10**MAX_DIGITS:
        raise ValueError("more digits than the model was taught")
    return a, b


def _is_short_sum(a: int, b: int) -> bool:
    return max(a, b) < 10


def _is_short_difference(a: int, b: int) -> bool:
    return b < 10 and 0 <= a - b < 10


def _labelled(number: int) -> str:
    """4821 -> 'd4 c8 b2 a1': a name for each place, so that a column is found by name and not by counting."""
    digits = str(number)
    return " ".join(_PLACES[len(digits) - 1 - i] + digit for i, digit in enumerate(digits))


def _digit(number: int, place: int) -> int:
    return number // int(10**place) % 10


def _read_up(written: list[int], result: int) -> list[str]:
    places = [_PLACES[i] + str(written[i]) for i in reversed(range(len(written)))]
    return ["So " + " ".join(places), f"The answer is {result}."]


def worked_sum(fields: Fields) -> str:
    """Addition from the right, the carry written out."""
    a, b = _operands(fields)
    lines, written, carry, place = [f"Digits: {_labelled(a)} + {_labelled(b)}"], [], 0, 0
    while place < max(len(str(a)), len(str(b))) or carry:
        top, bottom = _digit(a, place), _digit(b, place)
        total = top + bottom + carry
        carried = "+1" if carry else ""
        lines.append(f"{_PLACES[place]}: {top}+{bottom}{carried}={total}, carry {total // 10}")
        written.append(total % 10)
        carry, place = total // 10, place + 1
    return "\n".join(lines + _read_up(written, a + b))


def worked_difference(fields: Fields) -> str:
    """Subtraction from the right, the borrow written out; never below zero."""
    a, b = _operands(fields)
    if a < b:
        raise ValueError("the difference is below zero")
    lines, written, borrow = [f"Digits: {_labelled(a)} - {_labelled(b)}"], [], 0
    for place in range(len(str(a))):
        top, bottom = _digit(a, place), _digit(b, place)
        lent = int(top - bottom - borrow < 0)
        rest = top + 10 * lent - bottom - borrow
        borrowed = "-1" if borrow else ""
        lines.append(f"{_PLACES[place]}: {top + 10 * lent}-{bottom}{borrowed}={rest}, borrow {lent}")
        written.append(rest)
        borrow = lent
    return "\n".join(lines + _read_up(written, a - b))


def _long_sum(fields: Fields) -> str:
    if _is_short_sum(*_operands(fields)):
        raise ValueError("short enough to answer at once")
    return worked_sum(fields)


def _long_difference(fields: Fields) -> str:
    if _is_short_difference(*_operands(fields)):
        raise ValueError("short enough to answer at once")
    return worked_difference(fields)


def _short_sum(fields: Fields) -> str:
    a, b = _operands(fields)
    if not _is_short_sum(a, b):
        raise ValueError("too long to answer at once")
    return f"{a}+{b}={a + b}."


def _short_difference(fields: Fields) -> str:
    a, b = _operands(fields)
    if not _is_short_difference(a, b):
        raise ValueError("too long to answer at once, or below zero")
    return f"{a}-{b}={a - b}."


def _number(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _draw(rng: Random, least: int, most: int, ordered: bool) -> Fields:
    a, b = _number(rng, rng.randint(1, most)), _number(rng, rng.randint(least, most))
    if ordered or rng.random() < 0.5:
        a, b = max(a, b), min(a, b)
    return {"a": str(a), "b": str(b)}


def _draw_short_sum(rng: Random) -> Fields:
    return {"a": str(rng.randint(0, 9)), "b": str(rng.randint(0, 9))}


def _draw_short_difference(rng: Random) -> Fields:
    b = rng.randint(0, 9)
    return {"a": str(b + rng.randint(0, 9)), "b": str(b)}


def _draw_long(ordered: bool) -> Callable[[Random], Fields]:
    return lambda rng: _draw(rng, 2, MAX_DIGITS, ordered)


_SUM = (
    "What is {a} + {b}?",
    "{a} + {b}",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "What is {a} plus {b}?",
)
_SUM_STEPS = ("Work out {a} + {b} step by step.", "Show how to add {a} and {b}.")
_DIFFERENCE = (
    "What is {a} - {b}?",
    "{a} - {b}",
    "How much is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "What is {a} minus {b}?",
)
_DIFFERENCE_STEPS = ("Work out {a} - {b} step by step.", "Show how to subtract {b} from {a}.")

KINDS = (
    Kind("arithmetic", "sum, short", _SUM, _draw_short_sum, _short_sum, 0.5),
    Kind("arithmetic", "difference, short", _DIFFERENCE, _draw_short_difference, _short_difference, 0.5),
    Kind("arithmetic", "sum, long", _SUM, _draw_long(False), _long_sum, 1.2),
    Kind("arithmetic", "difference, long", _DIFFERENCE, _draw_long(True), _long_difference, 1.2),
    Kind("arithmetic", "sum, steps", _SUM_STEPS, _draw_long(False), worked_sum, 0.5),
    Kind("arithmetic", "difference, steps", _DIFFERENCE_STEPS, _draw_long(True), worked_difference, 0.5),
)
