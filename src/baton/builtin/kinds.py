"""What a kind of question is, and which questions are kept from training.

Standard library only: benchmarks and tests import this without torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

HELD_OUT_CLASSES = 8
HELD_OUT_CLASS = 3

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

Fields = dict[str, str]

# What each named hole of a template may hold; a hole not named here holds one or more digits.
_HOLES = {
    "word": r'"[a-z]+"',
    "letter": r'"[a-z]"',
    "numbers": r"\d+(?:, \d+)*",
    "words": r"[a-z]+(?:, [a-z]+)*",
    "day": "|".join(WEEKDAYS),
    "month": "|".join(MONTHS),
    "nth": r"\d+(?:st|nd|rd|th)",
    "thing": r"[a-z]+",
    "other": r"[a-z]+",
}


@dataclass(frozen=True)
class Kind:
    """One kind of question: how it is worded, drawn and answered.

    `answer` is the reference, worked through; its last line has the result. It raises ValueError for fields out of its
    range; then the question is of another kind or of none.
    """

    task: str
    name: str
    templates: tuple[str, ...]
    draw: Callable[[Random], Fields]
    answer: Callable[[Fields], str]
    weight: float = 1.0

    def read(self, question: str) -> Fields | None:
        """The fields of a question worded by one of the templates, or None."""
        asked = normalise(question)
        for template in self.templates:
            if match := _pattern(template).fullmatch(asked):
                return {name: _proper(value) for name, value in match.groupdict().items()}
        return None


@dataclass(frozen=True)
class Question:
    """A question, its reference answer, and where it comes from."""

    task: str
    kind: str
    text: str
    answer: str


def normalise(question: str) -> str:
    """The question without differences of typing: case, outer punctuation, runs of blanks."""
    return re.sub(r"\s+", " ", question).strip().rstrip(".?! ").casefold()


def is_held_out(question: str) -> bool:
    """Whether the question is kept from training, decided only by a hash of its normalised text."""
    digest = hashlib.sha256(normalise(question).encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_CLASSES == HELD_OUT_CLASS


_compiled: dict[str, re.Pattern[str]] = {}


def _pattern(template: str) -> re.Pattern[str]:
    if template not in _compiled:
        parts = re.split(r"\{(\w+)\}", normalise(template))
        holes = [f"(?P<{p}>{_HOLES.get(p, r'[0-9]+')})" if i % 2 else re.escape(p) for i, p in enumerate(parts)]
        _compiled[template] = re.compile("".join(holes), re.IGNORECASE)
    return _compiled[template]


def _proper(value: str) -> str:
    """Gives weekdays and months their capital back, which `normalise` removed."""
    capital = value.capitalize()
    return capital if capital in WEEKDAYS or capital in MONTHS else value
