"""Questions with known answers: drawn from a seed, checked by computing.

Standard library only, so that benchmarks and tests judge answers without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from baton.builtin import arithmetic, dates, letters, lists
from baton.builtin.chat import draw_chat
from baton.builtin.kinds import Kind, Question, is_held_out
from baton.builtin.stories import draw_story

KINDS: tuple[Kind, ...] = (*arithmetic.KINDS, *lists.KINDS, *letters.KINDS, *dates.KINDS)
CHECKABLE_TASKS = ("arithmetic", "sorting", "counting", "spelling", "dates")
TASKS = (*CHECKABLE_TASKS, "stories", "chat")

_OPEN = {"stories": draw_story, "chat": draw_chat}


def questions(task: str, n: int, seed: int, held_out: bool = True) -> list[Question]:
    """`n` questions of a task, the same for the same seed; held-out ones were never trained on.

    Raises ValueError for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    drawn = stream(task, Random(f"{task} {seed}"), held_out)
    return [next(drawn) for _ in range(n)]


def stream(task: str, rng: Random, held_out: bool) -> Iterator[Question]:
    """Questions of a task without end, all on one side of the hold-out."""
    kinds = [kind for kind in KINDS if kind.task == task]
    weights = [kind.weight for kind in kinds]
    while True:
        question = _draw_open(task, rng) if task in _OPEN else _draw(rng.choices(kinds, weights)[0], rng)
        if is_held_out(question.text) == held_out or task == "chat":
            yield question


def _draw_open(task: str, rng: Random) -> Question:
    text, answer = _OPEN[task](rng)
    return Question(task, task, text, answer)


def _draw(kind: Kind, rng: Random) -> Question:
    while True:
        fields = kind.draw(rng)
        text = rng.choice(kind.templates).format(**fields)
        try:
            return Question(kind.task, kind.name, text, kind.answer(fields))
        except ValueError:
            continue


def reference(question: str) -> str | None:
    """The computed answer, worked through; None if the question is of no checkable kind."""
    for kind in KINDS:
        if (fields := kind.read(question)) is not None:
            try:
                return kind.answer(fields)
            except ValueError:
                continue
    return None


def check(question: str, answer: str) -> bool | None:
    """Whether the answer's last line, its result, is right; None if the question cannot be checked."""
    truth = reference(question)
    return None if truth is None else _last_line(answer) == _last_line(truth)


def check_work(question: str, answer: str) -> bool | None:
    """Whether the whole work is right, in every line; None if the question cannot be checked."""
    truth = reference(question)
    return None if truth is None else answer.strip() == truth


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].strip()
