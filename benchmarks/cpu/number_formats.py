"""What number formats cost in accuracy: right answers of the built-in model's held-out questions, greedy.

    python -m benchmarks.cpu.number_formats [--per-task 100] [--write docs/benchmarks.md]

The built-in model answers the same questions in float32, in bfloat16 and with its linear layers in 8 and 4 bits;
`stock` is transformers' float32 `generate`. How far logits are off on a checkpoint of yours says `baton check MODEL`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baton import LLM, SamplingParams, builtin
from baton.builtin.evaluate import Answerer, Score
from baton.builtin.kinds import Question
from baton.builtin.tasks import CHECKABLE_TASKS, questions
from benchmarks.report import flags, parsed, table, tell

FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8 weights": {"dtype": "float32", "quantize": "int8"},
    "int4 weights": {"dtype": "float32", "quantize": "int4"},
    "int4:exact weights": {"dtype": "float32", "quantize": "int4:exact"},
}
LONGEST = 400


def main() -> None:
    parser = flags(__doc__, "number_formats")
    parser.add_argument("--per-task", type=int, default=100)
    args = parsed(parser)
    asked = {task: questions(task, args.per_task, args.seed) for task in CHECKABLE_TASKS}
    stock = Answerer(builtin.path(), "cpu", 32)
    results = {"stock float32": scores(asked, stock.answers)}
    for name, settings in FORMATS.items():
        with LLM(max_batch_size=8, **settings) as llm:
            results[name] = scores(asked, lambda texts, llm=llm: answers(llm, texts))  # type: ignore[misc]
    rows = [
        [name, *(f"{tally.right / tally.asked:.1%}" for tally in by_task.values())] for name, by_task in results.items()
    ]
    figures = {name: {task: tally.right for task, tally in by_task.items()} for name, by_task in results.items()}
    tell(args, [f"{args.per_task} questions of each task.", "", *table(("weights", *CHECKABLE_TASKS), rows)], figures)


def scores(asked: dict[str, list[Question]], answers: Callable[[list[str]], list[str]]) -> dict[str, Score]:
    tallies = {}
    for task, some in asked.items():
        tallies[task] = Score()
        for question, answer in zip(some, answers([question.text for question in some]), strict=True):
            tallies[task].add(question.text, answer)
    return tallies


def answers(llm: LLM, texts: list[str]) -> list[str]:
    params = SamplingParams(temperature=0, max_tokens=LONGEST)
    chats = [[{"role": "user", "content": text}] for text in texts]
    return [output.outputs[0].text for output in llm.chat(chats, params)]


if __name__ == "__main__":
    main()
