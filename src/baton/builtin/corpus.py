"""The training text: conversations drawn from the tasks, encoded, and packed into rows.

No torch here; rows are plain lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Protocol

from baton.builtin.chat import SYSTEM_MESSAGES
from baton.builtin.kinds import Question
from baton.builtin.tasks import stream

SPECIALS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "<|bos|>{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Shares of the turns, by task. Long worked answers weigh more than this in tokens.
SHARES = {
    "arithmetic": 0.10,
    "sorting": 0.48,
    "counting": 0.22,
    "spelling": 0.09,
    "dates": 0.04,
    "stories": 0.05,
    "chat": 0.02,
}

Turns = list[tuple[str, str]]  # (role, text)


class Encoder(Protocol):
    """The part of a tokenizer that is used here: ids of a text, including special tokens by name."""

    def __call__(self, text: str) -> list[int]:
        """The ids of `text`, nothing added."""
        ...


@dataclass
class Row:
    """Tokens of one training row, and how much each weighs in the loss: 0 for tokens that are only read.

    An answer weighs as the square root of its length. If each token weighed the same, long worked answers, nearly all
    of whose tokens are easy, would outweigh the few that decide a short one.
    """

    ids: list[int]
    weights: list[float]


def roughen(text: str, rng: Random) -> str:
    """The question as people type it: sometimes without its capital or its full stop."""
    if rng.random() < 0.1:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.1:
        text = text.rstrip(".?")
    return text.lower() if rng.random() < 0.03 else text


def conversations(seed: int, most_turns: int) -> Iterator[Turns]:
    """Conversations without end, none of them with a held-out question."""
    rng = Random(seed)
    streams: dict[str, Iterator[Question]] = {task: stream(task, rng, held_out=False) for task in SHARES}
    names, weights = list(SHARES), list(SHARES.values())
    while True:
        turns: Turns = []
        if rng.random() < 0.12:
            turns.append(("system", rng.choice(SYSTEM_MESSAGES)))
        for _ in range(min(most_turns, rng.choice((1, 1, 2, 3, 6)))):
            question = next(streams[rng.choices(names, weights)[0]])
            turns += [("user", roughen(question.text, rng)), ("assistant", question.answer)]
        yield turns


def encode(turns: Turns, encoder: Encoder) -> Row:
    """A conversation as the chat template writes it; answers are learned, everything else is only read."""
    ids, weights = encoder("<|bos|>"), [0.0]
    for role, text in turns:
        body = encoder(f"{text}<|end|>")
        ids += [*encoder(f"<|{role}|>"), *body]
        weights += [0.0, *[len(body) ** -0.5 if role == "assistant" else 0.0] * len(body)]
    return Row(ids, weights)


def rows(seed: int, length: int, encoder: Encoder) -> Iterator[Row]:
    """Rows of at most `length` tokens, each of whole conversations (best fit from a small pool).

    Conversations in a row see one another, so the model learns to answer at any position, whatever came before.
    """
    source = (encode(turns, encoder) for turns in conversations(seed, most_turns=max(2, length // 100)))
    pool: list[Row] = []
    while True:
        row = Row([], [])
        while True:
            while len(pool) < 64:
                if len((drawn := next(source)).ids) <= length:
                    pool.append(drawn)
            fitting = [i for i, each in enumerate(pool) if len(row.ids) + len(each.ids) <= length]
            if not fitting:
                break
            # Taking the oldest first keeps long ones from waiting; towards the end the longest that fits fills best.
            room = length - len(row.ids)
            pick = fitting[0] if room > 200 else max(fitting, key=lambda i: len(pool[i].ids))
            chosen = pool.pop(pick)
            row.ids += chosen.ids
            row.weights += chosen.weights
        yield row
