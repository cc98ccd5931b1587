"""The queries: prompts and answers as long as those of the Azure conversation trace's first queries."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import TRACE


@dataclass(frozen=True)
class Ask:
    prompt: list[int]
    tokens: int


def asks_of(count: int, columns: int) -> list[Ask]:
    """As many as asked for, each of which fits a row."""
    return [Ask(prompt_of(context, at), tokens) for at, (context, tokens) in enumerate(_lengths(count, columns))]


def prompt_of(length: int, at: int) -> list[int]:
    """Token ids that every vocabulary has, another row of them for each query."""
    return [5 + (7 * i + at) % 200 for i in range(length)]


def lengths_of(asks: Sequence[Ask], rows: int, columns: int) -> list[int]:
    """Lengths of rows in the middle of their answers."""
    lengths = [len(ask.prompt) + ask.tokens // 2 for ask in itertools.islice(itertools.cycle(asks), rows)]
    return [min(length, columns - 64) for length in lengths]


def _lengths(count: int, columns: int) -> list[tuple[int, int]]:
    """Prompt and answer of the trace's first queries, as far as a row is long."""
    with TRACE.open() as file:
        rows = list(itertools.islice(csv.DictReader(file), count))
    lengths = []
    for row in rows:
        tokens = min(int(row["GeneratedTokens"]), columns // 4)
        lengths.append((max(1, min(int(row["ContextTokens"]), columns - tokens)), tokens))
    return lengths
