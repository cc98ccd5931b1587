"""The trace's first queries straight through the engine, all at once, without HTTP: wall time and the longest waits.

Environment variables such as GOMP_SPINCOUNT act as they do on the server. Run variants in turn, never one alone.

    python -m benchmarks.cpu.engine_alone --policy baton
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

from baton.compose import open_engine
from baton.core.config import Config
from baton.core.events import Event, IterationDone, QueryMoved
from baton.core.query import SamplingParams, State
from baton.policy.baton import Baton
from baton.policy.table import POLICIES
from benchmarks import TRACE


@dataclass
class Waits:
    """A sink that keeps how long running rows waited, and how long prefilled queries waited for a row, in seconds."""

    stalls: list[float] = field(default_factory=lambda: [0.0])
    for_rows: list[float] = field(default_factory=lambda: [0.0])
    _ready: dict[str, float] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if isinstance(event, IterationDone):
            self.stalls.append(sum(event.stall_seconds.values()))
        elif isinstance(event, QueryMoved):
            if event.now is State.READY:
                self._ready[event.query_id] = event.time
            elif event.now is State.RUNNING and event.query_id in self._ready:
                self.for_rows.append(event.time - self._ready[event.query_id])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=TRACE, help="CSV with ContextTokens and GeneratedTokens")
    parser.add_argument("--model", help="hub id or folder; the built-in model if left out")
    parser.add_argument("--policy", choices=sorted(POLICIES), default="baton")
    parser.add_argument("--apart", action="store_true", help="baton: prompt chunks never ride in the batch's step")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--clip-prompt", type=int, default=1024)
    parser.add_argument("--clip-answer", type=int, default=512)
    args = parser.parse_args()

    waits = Waits()
    policy = Baton(fused=False) if args.apart else None
    config = Config(model=args.model, policy=args.policy, max_batch_size=str(args.rows))
    client = open_engine(config, policy=policy, sinks=[waits]).client
    with args.trace.open() as file:
        rows = list(itertools.islice(csv.DictReader(file), args.queries))
    queries = []
    for index, row in enumerate(rows):
        prompt = [5 + (7 * at + index) % 200 for at in range(min(int(row["ContextTokens"]), args.clip_prompt))]
        most = min(int(row["GeneratedTokens"]), args.clip_answer)
        queries += client.queries(prompt, SamplingParams(temperature=0, max_tokens=most, ignore_eos=True))
    began = time.perf_counter()
    tokens = sum(len(update.token_ids) for update in client.run(queries))
    seconds = time.perf_counter() - began
    stats = client.stats()
    client.close()
    print(
        f"{args.policy}{' apart' if args.apart else ''}: {seconds:.1f} s, {tokens / seconds:.0f} tokens/s, "
        f"{stats.iterations} iterations, idle {stats.slots.idle_ratio:.3f}, "
        f"longest stall {max(waits.stalls):.3f} s, longest wait for a row {max(waits.for_rows):.2f} s"
    )


if __name__ == "__main__":
    main()
