"""What it costs an engine to give live queries away and to take them back, for a query that stays.

    python -m benchmarks.cpu.giving [--model models/qwen06] [--rows 8] [--tokens 512] [--turns 7] [--json FILE]
        [--write docs/benchmarks.md]

All rows run, and one query more. Then the rows are given (`EngineLoop.give`), packed and unpacked as parcels
(`kv/parcel.py`), and resumed in the same engine with their keys and values; that again and again. The figures are the
gaps between two tokens of the query that stays: in steps of all rows, and where the queries left and came back.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Sequence

from baton.compose import open_engine
from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.events import Update
from baton.core.query import Query, SamplingParams
from baton.engine.client import Client
from baton.kv.parcel import pack, unpack
from benchmarks.report import flags, parsed, table, tell

STEPS = 12


class Stays:
    """The query that stays: when its tokens came."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self.times: list[float] = []

    def __call__(self, updates: list[Update]) -> None:
        with self._news:
            self.times += [time.perf_counter() for update in updates for _ in update.token_ids]
            self._news.notify_all()

    def after(self, count: int) -> list[float]:
        """Waits for so many gaps more; returns them, in seconds."""
        begun = len(self.times)
        with self._news:
            self._news.wait_for(lambda: len(self.times) >= begun + count)
            times = self.times[begun - 1 : begun + count]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


def main() -> None:
    parser = flags(__doc__, "giving")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512, help="of each prompt")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quantize", default="none")
    args = parsed(parser)
    config = Config(model=args.model, max_batch_size=str(args.rows + 1), quantize=args.quantize, prefix_cache=False)
    client = open_engine(config).client
    stays = Stays()
    answer = (3 * STEPS + 8) * args.turns + 64
    queries = [query(client, args.tokens, answer, at) for at in range(args.rows)]
    client.loop.submit([query(client, 8, answer, -1)], stays)
    client.loop.submit(queries, lambda updates: None)
    while client.stats().running <= args.rows:
        time.sleep(0.05)
    figures: dict[str, list[float]] = {"step": [], "gives": [], "packs": [], "takes": []}
    for _ in range(args.turns):
        figures["step"].append(statistics.median(stays.after(STEPS)))
        turn(client, stays, [one.id for one in queries], figures)
    client.close()
    step = statistics.median(figures["step"])
    rows = [
        (name, f"{1e3 * statistics.median(taken):.1f}", f"{statistics.median(taken) / step:.2f}")
        for name, taken in (
            (f"a step of {args.rows + 1} rows", figures["step"]),
            ("longest gap of the query that stays, where the others leave", figures["gives"]),
            ("packed as parcels and unpacked, beside the engine", figures["packs"]),
            ("longest gap of the query that stays, where the others come back", figures["takes"]),
        )
    ]
    about = f"{args.rows} rows of {args.tokens} tokens, {args.quantize}; medians of {args.turns} turns."
    tell(args, [about, "", *table(["what", "ms", "steps"], rows)], figures)


def turn(client: Client, stays: Stays, names: Sequence[str], figures: dict[str, list[float]]) -> None:
    """Gives all rows, and takes them back."""
    given = client.loop.give(names)
    figures["gives"].append(max(stays.after(4)))
    segments = given.result()
    assert len(segments) == len(names) and all(segment.cached for segment in segments)
    began = time.perf_counter()
    parcels = [pack(segment, monotonic()) for segment in segments]
    back = [unpack(parcel, monotonic(), client.compile) for parcel in parcels]
    figures["packs"].append(time.perf_counter() - began)
    client.loop.resume(back, lambda updates: None)
    figures["takes"].append(max(stays.after(4)))
    while client.stats().running <= len(names):
        time.sleep(0.01)


def query(client: Client, tokens: int, answer: int, seed: int) -> Query:
    prompt = [5 + (7 * at + 13 * seed) % 200 for at in range(tokens)]
    params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True)
    (one,) = client.queries(prompt, params)
    return one


if __name__ == "__main__":
    main()
