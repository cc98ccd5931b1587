"""Generators and checkers agree, and what is held out stays held out."""

import subprocess
import sys
from random import Random

import pytest

from baton.builtin.corpus import SHARES, conversations
from baton.builtin.kinds import is_held_out, normalise
from baton.builtin.tasks import CHECKABLE_TASKS, KINDS, TASKS, check, check_work, questions, reference


@pytest.mark.parametrize("task", CHECKABLE_TASKS)
def test_every_reference_answer_passes_and_no_corrupted_one_does(task: str) -> None:
    for question in questions(task, 300, seed=7):
        assert check(question.text, question.answer) is True, question
        assert check_work(question.text, question.answer) is True, question
        body, last = question.answer[:-1], question.answer[-1]
        corrupted = body[:-1] + ("x" if body[-1] != "x" else "y") + last
        assert check(question.text, corrupted) is False, question
        assert check_work(question.text, corrupted) is False, question
        assert check(question.text, "") is False


def test_a_slip_in_the_work_alone_spoils_the_work_and_not_the_result() -> None:
    (question,) = [q for q in questions("spelling", 50, seed=3) if q.kind == "reverse"][:1]
    slipped = question.answer.replace("Letters: ", "Letters: z")
    assert check(question.text, slipped) is True
    assert check_work(question.text, slipped) is False


@pytest.mark.parametrize(
    ("question", "last_line"),
    [
        ("What is 4821 + 967?", "The answer is 5788."),
        ("what is 7 plus 8", "7+8=15."),
        ("Subtract 17 from 1000.", "The answer is 983."),
        ("Sort these numbers: 45, 70, 30, 12.", "The order is 12, 30, 45, 70."),
        ('How many times does "a" appear in "banana"?', "The answer is 3."),
        ("Count from 10 to 30 by 5.", "By 5: 10/30 15/30 20/30 25/30 30/30"),
        ('Reverse "banana".', 'The answer is "ananab".'),
        ('Spell "fox".', "f-o-x."),
        ("What day is 10 days after tuesday?", "The answer is Friday."),
        ("Is 1900 a leap year?", "No, 1900 is not a leap year."),
        ("How many days are in February 2000?", "February has 29 days."),
        ("If the 1st of a month is a Tuesday, what day is the 17th?", "The answer is Thursday."),
        ("Which month is 5 months after October?", "The answer is March."),
    ],
)
def test_truths_known_by_hand(question: str, last_line: str) -> None:
    truth = reference(question)
    assert truth is not None
    assert truth.splitlines()[-1] == last_line


@pytest.mark.parametrize(
    "question",
    [
        "Who wrote Faust?",
        "Spell fox.",
        "What is 7 - 8?",
        "What is 123456789 + 1?",
        "Sort these numbers: 100, 2",
        "Count from 1 to 10 by 4.",
        "Tell me a story.",
    ],
)
def test_what_is_out_of_range_cannot_be_checked(question: str) -> None:
    assert check(question, "Anything.") is None


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_asks_the_same(task: str) -> None:
    assert questions(task, 20, seed=1) == questions(task, 20, seed=1)
    assert questions(task, 20, seed=1) != questions(task, 20, seed=2)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "chat"])
def test_held_out_questions_and_training_questions_share_nothing(task: str) -> None:
    asked = {normalise(q.text) for q in questions(task, 300, seed=5)}
    taught = {normalise(q.text) for q in questions(task, 300, seed=5, held_out=False)}
    assert not asked & taught
    assert all(map(is_held_out, asked)) and not any(map(is_held_out, taught))


def test_training_text_holds_no_held_out_question() -> None:
    drawn = conversations(seed=11, most_turns=4)
    for _ in range(500):
        turns = next(drawn)
        asked = [text for role, text in turns if role == "user"]
        assert not [text for text in asked if is_held_out(text) and check(text, "") is not None]


def test_the_hold_out_is_stable_and_about_an_eighth() -> None:
    known = {"What is 4821 + 967?": False, "What is 17 + 4821?": False, "Tell me a story.": True}
    assert {text: is_held_out(text) for text in known} == known
    assert is_held_out("  what IS 4821 + 967") == is_held_out("What is 4821 + 967?")
    rng = Random(0)
    share = sum(is_held_out(f"What is {rng.randrange(10**6)} + {i}?") for i in range(4000)) / 4000
    assert 0.1 < share < 0.15


def test_every_kind_reads_its_own_questions() -> None:
    rng = Random(2)
    for kind in KINDS:
        for template in kind.templates:
            fields = kind.draw(rng)
            assert kind.read(template.format(**fields)) == fields


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown task"):
        questions("cooking", 1, seed=0)


def test_shares_name_every_task() -> None:
    assert set(SHARES) == set(TASKS)
    assert abs(sum(SHARES.values()) - 1) < 1e-9


def test_checking_needs_no_torch() -> None:
    code = "import sys, baton.builtin.tasks; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
