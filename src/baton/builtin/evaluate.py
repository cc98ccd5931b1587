"""Measures the built-in model, greedily, on held-out questions: `python -m baton.builtin.evaluate`.

Prints a table per task and kind, and exits with 1 if a task is under 95 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.builtin import path
from baton.builtin.kinds import Question
from baton.builtin.tasks import CHECKABLE_TASKS, check, check_work, questions, stream

ENOUGH = 0.95


@dataclass
class Score:
    """Counts of answers: all, right in the result, right in every line of the work."""

    asked: int = 0
    right: int = 0
    worked: int = 0

    def add(self, question: str, answer: str) -> None:
        """Counts one answer."""
        self.asked += 1
        self.right += bool(check(question, answer))
        self.worked += bool(check_work(question, answer))

    def row(self, name: str) -> str:
        """A line of the table."""
        return f"{name:<34}{self.asked:>6}{self.right / self.asked:>10.1%}{self.worked / self.asked:>12.1%}"


class Answerer:
    """Asks the model questions, greedily and in batches."""

    def __init__(self, folder: Path, device: str, batch: int) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self.model = loaded.to(device).eval()
        self.batch = batch

    @torch.inference_mode()
    def answers(self, texts: list[str], history_tokens: int = 0) -> list[str]:
        """Answers in the order of the questions, each asked after at least so much other conversation."""
        replies: list[str] = []
        for start in range(0, len(texts), self.batch):
            asked = texts[start : start + self.batch]
            chats = [[*self._history(text, history_tokens), *_turn("user", text)] for text in asked]
            inputs = self.tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            ).to(self.model.device)
            tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=400)
            new = tokens[:, inputs["input_ids"].shape[1] :]
            replies += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return replies

    def _history(self, text: str, least_tokens: int) -> list[dict[str, str]]:
        rng, turns, tokens = Random(text), list[dict[str, str]](), 0
        while tokens < least_tokens:
            earlier = next(stream(rng.choice(CHECKABLE_TASKS), rng, held_out=False))
            turns += _turn("user", earlier.text) + _turn("assistant", earlier.answer)
            tokens += len(self.tokenizer(earlier.text + earlier.answer).input_ids) + 4
        return turns


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def measure(
    answerer: Answerer, asked: list[Question], wrong: list[tuple[Question, str]], history_tokens: int = 0
) -> tuple[Score, dict[str, Score]]:
    """The tally of all and of each kind; wrong answers are added to `wrong`."""
    by_length = sorted(asked, key=lambda question: len(question.answer))
    whole, kinds = Score(), defaultdict[str, Score](Score)
    answers = answerer.answers([question.text for question in by_length], history_tokens)
    for question, answer in zip(by_length, answers, strict=True):
        for tally in (whole, kinds[question.kind]):
            tally.add(question.text, answer)
        if not check_work(question.text, answer):
            wrong.append((question, answer))
    return whole, kinds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=path(), help="a model folder; the shipped one if not named")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--history", type=int, default=0, help="tokens of other conversation before each question")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--task", choices=CHECKABLE_TASKS, action="append", help="only this task (may be repeated)")
    parser.add_argument("--show", type=int, default=0, help="print that many answers with a wrong line")
    asked = parser.parse_args()
    answerer, begun, enough = Answerer(asked.model, asked.device, asked.batch), time.monotonic(), True
    wrong: list[tuple[Question, str]] = []
    print(f"{'task / kind':<34}{'asked':>6}{'result':>10}{'whole work':>12}")
    for task in asked.task or CHECKABLE_TASKS:
        whole, kinds = measure(answerer, questions(task, asked.per_task, asked.seed), wrong, asked.history)
        print(whole.row(task), flush=True)
        for kind in sorted(kinds):
            print(kinds[kind].row(f"  {kind}"), flush=True)
        enough = enough and whole.right >= ENOUGH * whole.asked
    verdict = f"{'every task' if enough else 'NOT every task'} reaches {ENOUGH:.0%}"
    print(f"{time.monotonic() - begun:.0f} s; {verdict}")
    for question, answer in wrong[: asked.show]:
        print(f"--- {question.kind} | {question.text}\n{answer}\n--- expected\n{question.answer}")
    sys.exit(0 if enough else 1)


if __name__ == "__main__":
    main()
