"""Sorting numbers and words, counting along, and counting a list."""

from __future__ import annotations

from random import Random

from baton.builtin.kinds import Fields, Kind
from baton.builtin.words import OBJECTS

MOST_NUMBERS = 4
MOST_WORDS = 5
LONGEST_COUNT = 15
HIGHEST_COUNT = 100
MOST_COUNTED = 8


def _take_out(items: list[str], order: list[str], name: str, opening: str = "") -> list[str]:
    """One line per item that is taken: what is left, then the one to take next."""
    left, lines = list(items), []
    for item in order:
        lines.append(f"{opening}{', '.join(left)}: {name} {item}")
        left.remove(item)
    return lines


def _sorted_numbers(fields: Fields, name: str) -> str:
    items = fields["numbers"].split(", ")
    if not 2 <= len(items) <= MOST_NUMBERS or not all(10 <= int(item) <= 99 for item in items):
        raise ValueError("more or larger numbers than the model was taught")
    order = sorted(items, key=int, reverse=name == "largest")
    return "\n".join([*_take_out(items, order, name), f"The order is {', '.join(order)}."])


def ascending(fields: Fields) -> str:
    """Numbers sorted by taking the smallest of those left."""
    return _sorted_numbers(fields, "smallest")


def descending(fields: Fields) -> str:
    """Numbers sorted by taking the largest of those left."""
    return _sorted_numbers(fields, "largest")


def alphabetical(fields: Fields) -> str:
    """Words sorted by taking the first of those left; no two begin with the same letter."""
    items = fields["words"].split(", ")
    if not 2 <= len(items) <= MOST_WORDS or not set(items) <= set(OBJECTS):
        raise ValueError("more words than the model was taught, or unknown ones")
    if len({item[0] for item in items}) < len(items):
        raise ValueError("two words begin with the same letter")
    order = sorted(items)
    return "\n".join([*_take_out(items, order, "first", "From "), f"The order is {', '.join(order)}."])


def list_count(fields: Fields) -> str:
    """How many words a list has, each with its number."""
    items = fields["words"].split(", ")
    if len(items) > MOST_COUNTED:
        raise ValueError("more words than the model was taught")
    return ", ".join(f"{i} {item}" for i, item in enumerate(items, 1)) + f"\nThe answer is {len(items)}."


def counted(fields: Fields) -> str:
    """From a to b, up or down, by a step: the numbers themselves are the answer."""
    a, b, step = int(fields["a"]), int(fields["b"]), int(fields.get("step", "1"))
    if step < 1 or max(a, b) > HIGHEST_COUNT or abs(a - b) // step >= LONGEST_COUNT:
        raise ValueError("longer than the model was taught")
    if (b - a) % step:
        raise ValueError("steps that miss the end were not taught")
    numbers = range(a, b + 1, step) if a <= b else range(a, b - 1, -step)
    return f"By {step}: {' '.join(f'{number}/{b}' for number in numbers)}"


def _draw_numbers(rng: Random) -> Fields:
    return {"numbers": ", ".join(map(str, rng.sample(range(10, 100), rng.randint(3, MOST_NUMBERS))))}


def _draw_distinct(rng: Random) -> Fields:
    words: list[str] = []
    for _ in range(rng.randint(3, MOST_WORDS)):
        words.append(rng.choice([noun for noun in OBJECTS if noun[0] not in {word[0] for word in words}]))
    return {"words": ", ".join(words)}


def _draw_words(rng: Random) -> Fields:
    return {"words": ", ".join(rng.sample(OBJECTS, rng.randint(2, MOST_COUNTED)))}


def _draw_count(rng: Random) -> Fields:
    start, length = rng.randint(0, rng.choice((20, 90))), rng.randint(3, LONGEST_COUNT - 1)
    return {"a": str(start), "b": str(min(HIGHEST_COUNT, start + length))}


def _draw_count_down(rng: Random) -> Fields:
    up = _draw_count(rng)
    return {"a": up["b"], "b": up["a"]}


def _draw_steps(rng: Random) -> Fields:
    step, start = rng.choice((2, 5, 10)), rng.choice((0, rng.randint(0, 50)))
    end = start + step * rng.randint(3, min(12, (HIGHEST_COUNT - start) // step))
    return {"a": str(start), "b": str(end), "step": str(step)}


KINDS = (
    Kind(
        "sorting",
        "smallest first",
        (
            "Sort these numbers: {numbers}.",
            "Sort {numbers}.",
            "Put these numbers in order: {numbers}",
            "Sort from smallest to largest: {numbers}",
        ),
        _draw_numbers,
        ascending,
        1.0,
    ),
    Kind(
        "sorting",
        "largest first",
        ("Sort from largest to smallest: {numbers}", "Sort these numbers, largest first: {numbers}"),
        _draw_numbers,
        descending,
        0.6,
    ),
    Kind(
        "sorting",
        "words",
        (
            "Put these words in alphabetical order: {words}",
            "Sort these words: {words}",
            "Sort alphabetically: {words}",
        ),
        _draw_distinct,
        alphabetical,
        1.2,
    ),
    Kind(
        "counting",
        "words of a list",
        (
            "How many words are in this list: {words}?",
            "Count these words: {words}",
            "How many words: {words}",
        ),
        _draw_words,
        list_count,
        0.7,
    ),
    Kind("counting", "up", ("Count from {a} to {b}.", "Count up from {a} to {b}."), _draw_count, counted, 0.5),
    Kind("counting", "down", ("Count down from {a} to {b}.",), _draw_count_down, counted, 0.4),
    Kind(
        "counting",
        "by steps",
        (
            "Count from {a} to {b} by {step}.",
            "Count by {step} from {a} to {b}.",
            "Count from {a} to {b} in steps of {step}.",
        ),
        _draw_steps,
        counted,
        0.8,
    ),
)
