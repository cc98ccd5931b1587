"""What an iteration takes beside the model: the real engine and its thread on a forward with ready-made logits.

Medians in microseconds by part, each without the parts inside it; and the sampler alone, by feature. The stub sleeps a
moment, as a native forward leaves Python to other threads. Each row's best token is one that the built-in model's
tokenizer knows, so that texts are real.

    python -m benchmarks.cpu.iteration_overhead --rows 8 32 --vocabulary 49152 151936
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor
from transformers import AutoTokenizer

from baton import builtin
from baton.compose import make_engine, set_threads
from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.query import Query, SamplingParams
from baton.core.settings import resolve
from baton.engine.client import Client
from baton.engine.loop import EngineLoop
from baton.kv.rectangle import LayerShape
from baton.loader.facts import facts_of
from baton.model.port import ForwardStats
from baton.model.tokenizer import ModelTokenizer
from baton.model.visibility import Span
from baton.observe.metrics import Metrics
from baton.policy.table import POLICIES
from baton.sampling.sampler import Draw, Sampler

# The 135M shape: 30 layers of 3 KV heads of 64 numbers.
LAYERS = [LayerShape(3, 64, 64)] * 30
FEATURES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "top-k 50, top-p 0.95": {"temperature": 0.8, "top_p": 0.95, "top_k": 50},
    "top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "temperature 0.8": {"temperature": 0.8},
    "greedy, three penalties": {
        "temperature": 0,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
    },
}
PARTS = ("plan", "rows", "sampler", "talk and text", "events and metrics", "loop crossing", "the rest")
TOKENS_SO_FAR = 290
SLEEP_SECONDS = 0.005


@dataclass
class Parts:
    """Seconds by part, without the parts inside it, for each turn of the engine's thread."""

    turns: list[Mapping[str, float]] = field(default_factory=list)
    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _open: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        self._open.append(0.0)
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self._seconds[part] += took - self._open.pop()
        if self._open:
            self._open[-1] += took
        else:
            self.turns.append(self._seconds)
            self._seconds = defaultdict(float)

    def watch(self, owner: Any, name: str, part: str) -> None:
        """From now on this method's time is of this part."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(part):
                return inner(*args, **kwargs)

        setattr(owner, name, measured)


class ReadyMade:
    """Replaces `model/forward.py`."""

    whole_prompts, long_rope_limit, grid = False, None, 0

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def decode(self, rectangle: object, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        time.sleep(SLEEP_SECONDS)
        return self._logits[: len(spans)], ForwardStats(sum(span.stop for span in spans), 0, 0, lambda: None)

    fill = padded = decode


def logits_of(rows: int, vocabulary: int, known: int) -> Tensor:
    """Probabilities fall with the square of a token's rank, as a sure model's do; the best are `known` tokens."""
    dice = torch.Generator().manual_seed(0)
    ranks = torch.stack([torch.randperm(known - 3, generator=dice) + 1 for _ in range(rows)])
    rest = torch.arange(known - 2, vocabulary + 1).expand(rows, -1)
    order = torch.cat([torch.full((rows, 3), vocabulary), ranks, rest], dim=1)[:, :vocabulary]
    return -2 * order.float().log() + torch.randn(rows, vocabulary, generator=dice) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--threads", default="auto")
    parser.add_argument("--policy", choices=sorted(POLICIES), default="baton")
    parser.add_argument("--waiting", type=int, default=24, help="queries that wait for a row meanwhile")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    set_threads(Config(threads=args.threads))
    print(
        f"{torch.get_num_threads()} torch threads, policy {args.policy}; median of {args.rounds} rounds, microseconds"
    )
    print(f"\n| rows | drawn | {' | '.join(PARTS)} | all |\n| --- | --- |{' --- |' * (len(PARTS) + 1)}")
    for rows in args.rows:
        for name in list(FEATURES)[:2]:
            rounds = [whole(args, rows, FEATURES[name]) for _ in range(args.rounds)]
            us = {part: statistics.median(one[part] for one in rounds) for part in rounds[0]}
            print(f"| {rows} | {name} | {' | '.join(f'{us[part]:.0f}' for part in PARTS)} | {us['all']:.0f} |")
    print(f"\n| vocabulary | rows | {' | '.join(FEATURES)} |\n| --- | --- |{' --- |' * len(FEATURES)}")
    for vocabulary in args.vocabulary:
        for rows in args.rows:
            us = alone(rows, vocabulary, args.rounds)
            print(f"| {vocabulary} | {rows} | {' | '.join(f'{us[name]:.0f}' for name in FEATURES)} |")


def whole(args: argparse.Namespace, rows: int, params: Mapping[str, Any]) -> dict[str, float]:
    """Microseconds per iteration in which all rows decode, each for a listener of its own on one event loop."""
    parts = Parts()
    tokenizer = ModelTokenizer(AutoTokenizer.from_pretrained(builtin.path()), args.vocabulary[0])
    forward = ReadyMade(logits_of(2 * rows + 1, args.vocabulary[0], len(tokenizer._tokenizer)))
    parts.watch(forward, "decode", "model")
    loaded: Any = SimpleNamespace(
        forward=forward,
        geometry=SimpleNamespace(shapes=LAYERS),
        tokenizer=tokenizer,
        end_ids=(2,),
        context_tokens=4096,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        stamp="stub",
    )
    settings = resolve(Config(max_batch_size=str(rows), policy=args.policy, prefix_cache=False), facts_of(loaded))
    sampler, metrics = Timed(parts), Metrics("stub", monotonic)
    engine = make_engine(loaded, settings, POLICIES[args.policy](), [metrics], sampler=sampler)
    parts.watch(engine, "iterate", "the rest")
    parts.watch(engine, "_view", "plan")
    parts.watch(engine._policy, "plan", "plan")
    parts.watch(engine.batch, "step", "rows")
    parts.watch(engine.queries.outputs, "append", "talk and text")
    parts.watch(engine.lifecycle, "_tell", "events and metrics")
    engine._sinks = (lambda event: watched(parts, metrics, event),)
    loop = EngineLoop.__new__(EngineLoop)
    parts.watch(loop, "_turn", "loop crossing")
    loop.__init__(engine, monotonic)  # type: ignore[misc]
    client = Client(model_name="stub", settings=settings, tokenizer=tokenizer, loop=loop, clock=monotonic)
    dice = random.Random(0)
    sampling = SamplingParams(max_tokens=args.iterations + 50, ignore_eos=True, **params)
    prompts = [[dice.randrange(3, 200) for _ in range(TOKENS_SO_FAR)] for _ in range(rows + args.waiting)]
    queries = [query for prompt in prompts for query in client.queries(prompt, sampling)]
    heard = dict.fromkeys([query.id for query in queries[:rows]], 0)
    # From the point where all rows decode until the first query ends.
    goals, marks = [20, args.iterations + 20], []

    async def listen(query: Query) -> None:
        async with contextlib.aclosing(client.stream([query])) as updates:
            async for update in updates:
                if query.id in heard:
                    heard[query.id] += len(update.token_ids)
                    if goals and min(heard.values()) >= goals[0]:
                        goals.pop(0)
                        marks.append(len(parts.turns))
                if not goals:
                    return

    async def crowd() -> None:
        await asyncio.gather(*map(listen, queries[:rows]), *map(listen, queries[rows:]))

    asyncio.run(crowd())
    client.close()
    turns = parts.turns[marks[0] : marks[1]]
    us = {part: 1e6 * statistics.median(turn[part] for turn in turns) for part in PARTS}
    return {**us, "all": 1e6 * statistics.median(sum(turn[part] for part in PARTS) for turn in turns)}


class Timed(Sampler):
    sees_logits = True

    def __init__(self, parts: Parts) -> None:
        super().__init__(end_ids=(2,))
        self._parts = parts

    def __call__(self, logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
        with self._parts.measure("sampler"):
            return super().__call__(logits, draws)


def watched(parts: Parts, sink: Callable[[Any], None], event: object) -> None:
    with parts.measure("events and metrics"):
        sink(event)


@torch.inference_mode()
def alone(rows: int, vocabulary: int, rounds: int) -> dict[str, float]:
    """Microseconds of the sampler by feature, features alternated."""
    sampler, logits = Sampler(end_ids=(2,)), logits_of(rows, vocabulary, 4000)
    dice = random.Random(1)
    tokens = [[dice.randrange(vocabulary) for _ in range(TOKENS_SO_FAR)] for _ in range(rows)]
    times: dict[str, list[float]] = {name: [] for name in FEATURES}
    for turn in range(4 * rounds):
        for name, params in FEATURES.items():
            sampling = SamplingParams(**params)
            draws = [Draw(sampling, seed, so_far, 200) for seed, so_far in enumerate(tokens)]
            for _ in range(3):
                began = time.perf_counter()
                sampler(logits, draws)
                took = time.perf_counter() - began
            # The last of three: what the others left in the caches is not its neighbour's fault.
            if turn:
                times[name].append(1e6 * took)
    return {name: statistics.median(some) for name, some in times.items()}


if __name__ == "__main__":
    main()
