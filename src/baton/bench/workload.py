"""What is asked of an engine, and when: from traces of real services or from distributions, the same for every run."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from baton.core.errors import SettingError

MOONCAKE_BLOCK = 512
"""Tokens that one hash of a Mooncake trace stands for (Qin et al., arXiv 2407.00079)."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One query: seconds from the start, tokens of its prompt and to be generated.

    `blocks`: names of its prompt's leading blocks; equal names are equal tokens, `block_tokens` of them each. `after`:
    for a later turn of a conversation, the number of the query before it. It is asked when that answer is there; its
    prompt is everything that was said until then and `prompt_tokens` new tokens.
    """

    at: float
    prompt_tokens: int
    answer_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Queries in order of arrival. `about`: where they are from, for reports."""

    about: str
    asks: tuple[Ask, ...]

    def first(self, count: int) -> Workload:
        return replace(self, asks=self.asks[:count])

    def clipped(self, prompt_tokens: int, answer_tokens: int) -> Workload:
        """With prompts and answers of at most so many tokens."""
        asks = [
            replace(
                ask,
                prompt_tokens=min(ask.prompt_tokens, prompt_tokens),
                answer_tokens=min(ask.answer_tokens, answer_tokens),
            )
            for ask in self.asks
        ]
        return replace(self, asks=tuple(asks))

    def faster(self, factor: float) -> Workload:
        """The same queries at `factor` times their rate."""
        return replace(self, asks=tuple(replace(ask, at=ask.at / factor) for ask in self.asks))

    def prompts(self, vocabulary: int, seed: int = 0, *, first_id: int = 3) -> list[list[int]]:
        """Token ids of all prompts: random, except blocks of the same name; for a later turn only its new tokens."""
        return [_prompt(ask, number, vocabulary, seed, first_id) for number, ask in enumerate(self.asks)]

    def conversations(self) -> list[list[int]]:
        """Numbers of queries that follow each other, in order; most are alone."""
        conversations: dict[int, list[int]] = {}
        for number, ask in enumerate(self.asks):
            conversation = [] if ask.after is None else conversations.pop(ask.after)
            conversations[number] = [*conversation, number]
        return sorted(conversations.values())

    def whole_prompts(self) -> list[int]:
        """Tokens of each query's prompt with everything that was said before it."""
        lengths: list[int] = []
        for ask in self.asks:
            before = 0 if ask.after is None else lengths[ask.after] + self.asks[ask.after].answer_tokens
            lengths.append(before + ask.prompt_tokens)
        return lengths

    def part(self, count: int) -> list[int]:
        """Numbers of about `count` queries, spread over all, each with the turns before it."""
        conversations = self.conversations()
        step = max(1, len(conversations) * len(conversations[0]) // max(1, count))
        return [number for conversation in conversations[::step] for number in conversation][:count]

    def only(self, numbers: Sequence[int]) -> Workload:
        """Only these queries. The turn before each must be among them."""
        new = {number: at for at, number in enumerate(numbers)}
        asks = [self.asks[number] for number in numbers]
        kept = [replace(ask, after=None if ask.after is None else new[ask.after]) for ask in asks]
        return replace(self, asks=tuple(kept))


def _prompt(ask: Ask, number: int, vocabulary: int, seed: int, first_id: int) -> list[int]:
    tokens: list[int] = []
    for block in ask.blocks:
        dice = random.Random(f"{seed} block {block}")
        tokens += [dice.randrange(first_id, vocabulary) for _ in range(ask.block_tokens)]
    dice = random.Random(f"{seed} query {number}")
    tokens += [dice.randrange(first_id, vocabulary) for _ in range(ask.prompt_tokens - len(tokens))]
    return tokens[: ask.prompt_tokens]


# ---- traces


def read_trace_of_queries(path: str | Path) -> Workload:
    """Reads Azure's LLM traces (2023, 2024, CSV), BurstGPT's (CSV) and Mooncake's (JSON lines), by their first line.

    Queries that ask or generate nothing are left out. Raises SettingError with the file and line of what is wrong.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            head = file.readline().strip()
            file.seek(0)
            kind = next((kind for kind, known in _TELLS.items() if known(head)), None)
            if kind is None:
                known_kinds = "Azure CSV, BurstGPT CSV or Mooncake JSON lines"
                raise SettingError(f"{path}: neither {known_kinds}: its first line is {head[:60]!r}", param="workload")
            asks = sorted(_numbered(path, _READERS[kind](file)), key=lambda ask: ask.at)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: {getattr(error, 'strerror', None) or 'not text'}", param="workload") from None
    useful = [ask for ask in asks if ask.prompt_tokens > 0 and ask.answer_tokens > 0]
    if not useful:
        raise SettingError(f"{path}: no queries in it", param="workload")
    start = useful[0].at
    return Workload(f"{Path(path).name} ({kind})", tuple(replace(ask, at=ask.at - start) for ask in useful))


def _numbered(path: str | Path, asks: Iterator[Ask]) -> Iterator[Ask]:
    number = 1
    while True:
        number += 1
        try:
            yield next(asks)
        except StopIteration:
            return
        except (KeyError, ValueError, TypeError) as error:
            raise SettingError(f"{path}, about line {number}: {error!r}", param="workload") from None


def _azure(lines: Iterable[str]) -> Iterator[Ask]:
    for row in csv.DictReader(lines):
        # Seven digits after the second in 2023; with a time zone in 2024.
        stamp = row["TIMESTAMP"].partition("+")[0]
        whole, _, part = stamp.partition(".")
        at = datetime.fromisoformat(whole).timestamp() + float(f"0.{part or 0}")
        yield Ask(at, int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _burstgpt(lines: Iterable[str]) -> Iterator[Ask]:
    for row in csv.DictReader(lines):
        yield Ask(float(row["Timestamp"]), int(row["Request tokens"]), int(row["Response tokens"]))


def _mooncake(lines: Iterable[str]) -> Iterator[Ask]:
    for line in lines:
        if not line.strip():
            continue
        row = json.loads(line)
        blocks = tuple(int(block) for block in row.get("hash_ids", ()))
        at, prompt = row["timestamp"] / 1000, int(row["input_length"])
        yield Ask(at, prompt, int(row["output_length"]), blocks[: prompt // MOONCAKE_BLOCK], MOONCAKE_BLOCK)


_READERS: dict[str, Callable[[Iterable[str]], Iterator[Ask]]] = {
    "Azure": _azure,
    "BurstGPT": _burstgpt,
    "Mooncake": _mooncake,
}
_TELLS: dict[str, Callable[[str], bool]] = {
    "Azure": lambda head: head.startswith("TIMESTAMP,ContextTokens,GeneratedTokens"),
    "BurstGPT": lambda head: head.startswith("Timestamp,") and "Request tokens" in head,
    "Mooncake": lambda head: head.startswith("{") and "input_length" in head,
}


# ---- distributions


def make_workload(
    count: int,
    *,
    prompt: str = "lognormal:100,0.8",
    answer: str = "lognormal:60,0.8",
    arrivals: str = "at-once",
    shared_prefix: int = 0,
    prefixes: int = 1,
    turns: int = 1,
    seed: int = 0,
) -> Workload:
    """Queries of drawn lengths and times; with `turns` above 1, `count` conversations of so many.

    Lengths: "128", "uniform:10,200" or "lognormal:MEDIAN,SIGMA". Arrivals: "at-once", "poisson:RATE" or
    "bursty:RATE,CV" (gamma-distributed times between queries with that coefficient of variation); rates are queries a
    second. `shared_prefix` tokens begin each prompt, one of `prefixes` such beginnings. Raises SettingError.
    """
    if count < 1:
        raise SettingError("a workload has at least one query", param="queries")
    dice = random.Random(seed)
    lengths = [(_length("prompt", prompt, dice), _length("answer", answer, dice)) for _ in range(count)]
    times = _times(arrivals, count, dice)
    asks: list[Ask] = []
    for at, (own, answered) in zip(times, lengths, strict=True):
        blocks = (dice.randrange(prefixes),) if shared_prefix else ()
        asks.append(Ask(at, shared_prefix + own, answered, blocks, shared_prefix))
        for _ in range(turns - 1):
            own, answered = _length("prompt", prompt, dice), _length("answer", answer, dice)
            asks.append(Ask(at, own, answered, after=len(asks) - 1))
    beginning = f", {shared_prefix} tokens shared ({prefixes})" if shared_prefix else ""
    what = "queries" if turns == 1 else f"conversations of {turns} turns"
    about = f"{count} {what}, prompts {prompt}, answers {answer}, {arrivals}{beginning}, seed {seed}"
    return Workload(about, tuple(asks))


def _length(name: str, spec: str, dice: random.Random) -> int:
    kind, _, rest = spec.partition(":")
    try:
        numbers = [float(part) for part in rest.split(",")] if rest else []
        if kind.isdecimal() and not rest:
            return max(1, int(kind))
        if kind == "uniform":
            low, high = numbers
            return max(1, dice.randint(int(low), int(high)))
        if kind == "lognormal":
            median, sigma = numbers
            return max(1, round(dice.lognormvariate(math.log(median), sigma)))
    except ValueError:
        pass
    raise SettingError(f'--{name} {spec}: must be like "128", "uniform:10,200" or "lognormal:100,0.8"', param=name)


def _times(spec: str, count: int, dice: random.Random) -> Sequence[float]:
    kind, _, rest = spec.partition(":")
    try:
        numbers = [float(part) for part in rest.split(",")] if rest else []
        if kind == "at-once" and not numbers:
            return [0.0] * count
        if kind == "poisson" and numbers[0] > 0:
            (rate,) = numbers
            gaps = [dice.expovariate(rate) for _ in range(count)]
        elif kind == "bursty" and min(numbers) > 0:
            rate, variation = numbers
            shape = 1 / variation**2
            gaps = [dice.gammavariate(shape, 1 / (rate * shape)) for _ in range(count)]
        else:
            raise ValueError
    except (ValueError, IndexError):
        message = f'--arrivals {spec}: must be like "at-once", "poisson:2" or "bursty:2,3"'
        raise SettingError(message, param="arrivals") from None
    times, now = [], 0.0
    for gap in gaps:
        times.append(now)
        now += gap
    return times
