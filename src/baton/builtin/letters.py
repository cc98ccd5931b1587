"""Spelling, reversing, and counting letters, each worked letter by letter."""

from __future__ import annotations

from random import Random

from baton.builtin.kinds import Fields, Kind
from baton.builtin.words import a_word

MAX_LETTERS = 6


def _word(fields: Fields) -> str:
    word = fields["word"].strip('"')
    if len(word) > MAX_LETTERS:
        raise ValueError("longer than the model was taught")
    return word


def _numbered(word: str) -> list[str]:
    return [f"{letter}{i}" for i, letter in enumerate(word, 1)]


def spelled(fields: Fields) -> str:
    """b-a-n-a-n-a."""
    return "-".join(_word(fields)) + "."


def reversed_word(fields: Fields) -> str:
    """The letters numbered, then read from the last number down."""
    word = _word(fields)
    numbered = _numbered(word)
    backwards = " ".join(reversed(numbered))
    return f'Letters: {" ".join(numbered)}\nBackwards: {backwards}\nThe answer is "{word[::-1]}".'


def letter_count(fields: Fields) -> str:
    """How many letters a word has: the last number."""
    word = _word(fields)
    return f"Letters: {' '.join(_numbered(word))}\nThe answer is {len(word)}."


def one_letter_count(fields: Fields) -> str:
    """How often one letter occurs in a word, with the running count after each letter."""
    word, wanted, count, running = _word(fields), fields["letter"].strip('"'), 0, []
    for letter in word:
        count += letter == wanted
        running.append(f"{letter}-{wanted}{count}")
    return f"Letters: {' '.join(running)}\nThe answer is {count}."


def _draw(rng: Random) -> Fields:
    return {"word": a_word(rng, MAX_LETTERS)}


def _draw_with_letter(rng: Random) -> Fields:
    word = a_word(rng, MAX_LETTERS)
    letter = rng.choice(word.strip('"')) if rng.random() < 0.8 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    return {"word": word, "letter": f'"{letter}"'}


KINDS = (
    Kind(
        "spelling",
        "spell",
        ("Spell {word}.", "Spell the word {word}.", "How do you spell {word}?", "How is {word} spelled?"),
        _draw,
        spelled,
        0.5,
    ),
    Kind(
        "spelling",
        "reverse",
        (
            "Reverse {word}.",
            "Reverse the word {word}.",
            "Write {word} backwards.",
            "What is {word} spelled backwards?",
        ),
        _draw,
        reversed_word,
        1.2,
    ),
    Kind(
        "counting",
        "letters of a word",
        (
            "How many letters are in {word}?",
            "How many letters does {word} have?",
            "Count the letters in {word}.",
            "How long is the word {word}?",
        ),
        _draw,
        letter_count,
        0.3,
    ),
    Kind(
        "counting",
        "one letter",
        (
            "How many times does {letter} appear in {word}?",
            "How many {letter} are in {word}?",
            "Count the letter {letter} in {word}.",
            "How often is the letter {letter} in the word {word}?",
        ),
        _draw_with_letter,
        one_letter_count,
        2.2,
    ),
)
