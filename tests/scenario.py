"""Scenarios for an engine on a tiny model: all that meets in one is drawn from its seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from baton.core.query import Query, SamplingParams
from baton.policy.table import POLICIES
from families import CONTEXT, VOCABULARY

POISON = 3
"""Its embedding is not finite, so that what follows it is not."""

# One of each kind of layer and each way of running.
FAMILIES = (
    *("llama", "mistral_window", "gemma3", "llama4", "deepseek_v3", "mamba2", "mamba", "jamba", "falcon_h1"),
    *("qwen3_next", "lfm2", "phi3_longrope", "bloom", "gpt_neo", "gpt_oss", "qwen3_moe", "gemma3n"),
)


class Picky:
    """A constraint that hangs on every token before, and takes them one by one as a grammar does."""

    def __init__(self) -> None:
        self.taken, self.sum = 0, 0

    def start(self) -> Picky:
        return Picky()

    def allowed(self, generated: Sequence[int]) -> bytes:
        self.sum += sum(at * token for at, token in enumerate(generated[self.taken :], self.taken + 1))
        self.taken = len(generated)
        bits = sum(1 << token for token in range(VOCABULARY) if (token + self.sum) % 7 < 2)
        return bits.to_bytes(VOCABULARY // 8, "little")


@dataclass(frozen=True)
class Ask:
    """Choices of one prompt. They arrive at a `turn`, or when the first one of an earlier ask has ended, to go on."""

    queries: Sequence[Query]
    turn: int
    after: int | None = None


@dataclass
class Scenario:
    """An engine in trouble, all from one seed; `kv` and `pool` are in bytes of the longest row."""

    seed: int
    asks: list[Ask] = field(init=False)

    def __post_init__(self) -> None:
        dice = self.dice = random.Random(self.seed)
        self.family = FAMILIES[self.seed % len(FAMILIES)]
        self.policy = dice.choice([*sorted(POLICIES), "apart"])
        self.rows, self.chunk = dice.randint(1, 5), dice.choice([None, 1, 3, 7, 20, 64])
        self.kv, self.pool = dice.choice([1, 1, 1.1, 1.5, 2.5, 20]), dice.choice([0, 0.1, 0.5, 1, 4, 100])
        self.sure, self.block = dice.choice([0, 3, 16, 64]), dice.choice([4, 8, 16, 32])
        self.prefixes = self.policy != "run_to_completion" and dice.random() < 0.75
        self.shaken, self.squeezed, self.short = dice.random() < 0.5, dice.random() < 0.25, dice.random() < 0.4
        # Rows and pool are in two memories, and copies between them come late.
        self.late = random.Random(49 * self.seed + 1).random() < 0.4
        beginnings = [some_tokens(dice, dice.choice([5, 20, 40, 70])) for _ in range(2)]
        self.asks = [self.ask(at, beginnings) for at in range(dice.randint(3, 6))]

    def __str__(self) -> str:
        return f"{self.seed}-{self.family}-{self.policy}"

    def ask(self, number: int, beginnings: Sequence[list[int]]) -> Ask:
        dice = self.dice
        shared = dice.choice(beginnings)[: dice.choice([8, 16, 32, 70])] if dice.random() < 0.6 else []
        prompt = (shared + some_tokens(dice, dice.choice([1, 2, 6, 15, 40, 90])))[:150]
        if dice.random() < 0.06:
            prompt[dice.randrange(len(prompt))] = POISON
        room = CONTEXT - len(prompt)
        limit = room if dice.random() < 0.08 else min(dice.choice([1, 2, 5, 12, 30]), room)
        params = some_params(dice, limit)
        names = [f"q{number}.{choice}" for choice in range(dice.choice([1, 1, 1, 2, 3]))]
        together = len(names) > 1 and self.prefixes and params.prompt_logprobs is None
        one = Query(
            id="",
            prompt=tuple(prompt),
            params=params,
            seed=1000 * number,
            limit_tokens=limit,
            arrived=0.0,
            priority=dice.choice([0, 0, 1, 2]),
            deadline=dice.choice([2.0, 6.0, 15.0]) if dice.random() < 0.15 else None,
            user=dice.choice(["", "a", "b"]),
            sibling_of=names[0] if together else "",
            constraint=Picky() if random.Random(100 * self.seed + number).random() < 0.25 else None,
        )
        queries = [replace(one, id=name, seed=one.seed + choice) for choice, name in enumerate(names)]
        return Ask(queries, dice.randint(0, 40), dice.randrange(number) if number and dice.random() < 0.3 else None)


def some_tokens(dice: random.Random, count: int) -> list[int]:
    return [dice.randrange(POISON + 1, VOCABULARY) for _ in range(count)]


def some_params(dice: random.Random, limit: int) -> SamplingParams:
    """Each of its own, most of them greedy and plain."""

    def now_and_then(share: float, *values: Any, usual: Any) -> Any:
        return dice.choice(values) if dice.random() < share else usual

    return SamplingParams(
        max_tokens=limit,
        ignore_eos=True,
        temperature=now_and_then(0.45, 0.3, 0.8, 1.3, usual=0),
        top_p=now_and_then(0.3, 0.5, 0.9, usual=1.0),
        top_k=now_and_then(0.2, 1, 5, 40, usual=0),
        min_p=now_and_then(0.1, 0.05, usual=0.0),
        repetition_penalty=now_and_then(0.25, 1.3, usual=1.0),
        frequency_penalty=now_and_then(0.15, 0.7, usual=0.0),
        presence_penalty=now_and_then(0.15, -0.7, usual=0.0),
        logit_bias=now_and_then(0.15, {40: 5}, {41: -100}, {POISON: 100}, usual=None),
        logprobs=now_and_then(0.3, 0, 1, 5, usual=None),
        prompt_logprobs=now_and_then(0.2, 0, 2, usual=None),
        stop_token_ids=now_and_then(0.3, tuple(some_tokens(dice, 6)), usual=()),
        min_tokens=min(limit, now_and_then(0.2, 1, 3, usual=0)),
    )
