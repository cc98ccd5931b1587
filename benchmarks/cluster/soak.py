"""Engines are killed under load for a while: each answer comes, and is what it would have been.

    python -m benchmarks.cluster.soak --minutes 15 [--every 30] [--clients 4] [--seed 0] [--json FILE]

`baton serve --replicas 2` answers a list of seeded requests of many kinds, one by one (`benchmarks/cpu/soak.py`). Then
clients draw from that list, plain and streamed, some leaving at a random token, while one of the engines is killed
(SIGKILL) every so many seconds, if both are there. A text that is not as alone, a status that is not 200, a stream that
ends with an error and a connection that breaks are breaches. Exit status 1 if there is one. `longest silence`: of
streams, between two events.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from typing import Any

import psutil

from benchmarks.cluster.served import Server, end_on_sigterm, serving
from benchmarks.cpu.soak import KEYS, Case, Soak, cases
from benchmarks.report import flags, parsed, table, tell

# A query may meet many kills here; by itself the second one ends it.
LOSSES = 1000
SERVE = (
    *("--replicas", "2", "--replica-cpus", "1", "--max-batch-size", "8", "--losses", str(LOSSES)),
    *("--policy", "slo", "--api-key", ",".join(KEYS)),
)
FINE = {"200", "left"}


class Killing(Soak):
    """Clients that forgive nothing, and who kills engines."""

    def __init__(self, url: str, some: list[Case], dice: random.Random) -> None:
        super().__init__(url, some, dice)
        self.kills = 0
        self.alone_seconds: list[float] = []

    async def killer(self, server: Server, every: float, end: float) -> None:
        while time.monotonic() + every < end:
            await asyncio.sleep(every)
            began = time.monotonic()
            while not await self._both(server):
                await asyncio.sleep(0.5)
            self.alone_seconds.append(time.monotonic() - began)
            with contextlib.suppress(psutil.NoSuchProcess):
                self._dice.choice(server.engines()).kill()
                self.kills += 1

    async def _both(self, server: Server) -> bool:
        """Whether the front hears two engines."""
        page = (await self.http.get("/live/data", headers={"authorization": f"Bearer {KEYS[0]}"})).json()
        return len(page.get("replicas", ())) == 2 and len(server.engines()) == 2

    def judge(self) -> None:
        for status, count in self.seen.statuses.items():
            if status not in FINE:
                self.seen.breach(f"{count} answers: {status}")


async def soak(server: Server, args: argparse.Namespace) -> Killing:
    dice = random.Random(args.seed)
    work = Killing(server.url, cases(dice, args.cases), dice)
    async with work.http:
        await work.alone()
        end = time.monotonic() + 60 * args.minutes
        clients = [work.client(end) for _ in range(args.clients)]
        await asyncio.gather(*clients, work.killer(server, args.every, end))
        work.judge()
        await work.at_rest()
    return work


def main() -> int:
    end_on_sigterm()
    parser = flags(__doc__, "killed-engines")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two kills")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--cases", type=int, default=48)
    args = parsed(parser)
    with serving(*SERVE) as server:
        work = asyncio.run(soak(server, args))
    seen = work.seen
    figures: dict[str, Any] = {
        "minutes": args.minutes,
        "engines killed": work.kills,
        "answers read to their end": seen.read,
        "clients that left": seen.statuses["left"],
        "other ends": sum(count for status, count in seen.statuses.items() if status not in FINE),
        "breaches": len(seen.breaches),
    }
    rows = [(name, f"{value:,}") for name, value in figures.items()]
    tell(args, [*table(["what", "count"], rows), *seen.breaches], {**figures, "statuses": dict(seen.statuses)})
    print(json.dumps(dict(seen.kinds)), file=sys.stderr)
    return 1 if seen.breaches or not work.kills else 0


if __name__ == "__main__":
    sys.exit(main())
