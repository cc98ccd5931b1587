"""How many engines there are while a load comes and goes: `baton serve --replicas 1-4` on Ray Serve.

    python -m benchmarks.cluster.autoscale [--minutes 4] [--engines 2.5] [--json FILE]

Requests come at even distances, so many that their rows keep 2.5 engines 80 % busy. Each engine has 4 rows and
iterations of 20 ms, as a larger model's would be, so that cores are not what is short. After these minutes nothing is
asked until one engine is left. `engines`: how many the front heard; `second`: from when on, after the first request.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import httpx

from benchmarks.cluster.served import end_on_sigterm, serving
from benchmarks.report import flags, parsed, table, tell

ROWS, STEP, TOKENS, BUSY = 4, 0.02, 100, 0.8
WORDS = ("--replicas", "1-4", "--replica-cpus", "1", "--max-batch-size", str(ROWS), "--max-waiting", "1000")
PACED = {"BATON_TEST_MODE": "1", "BATON_FAULTS": f"iteration_paced@1:{STEP}"}
PATIENCE_SECONDS = 400.0


class Watch:
    """What happened, in seconds from the first request."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.began = time.monotonic()
        self.changes: list[tuple[float, int]] = []
        self.statuses: Counter[int] = Counter()

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    async def ask(self, at: int) -> None:
        body = {"prompt": f"{at} times", "max_tokens": TOKENS, "ignore_eos": True}
        self.statuses[(await self.http.post("/v1/completions", json=body)).status_code] += 1

    async def load(self, seconds: float, apart: float) -> None:
        async with asyncio.TaskGroup() as asked:
            at = 0
            while self.now < seconds:
                asked.create_task(self.ask(at))
                at += 1
                await asyncio.sleep(max(0.0, at * apart - self.now))

    async def look(self) -> int:
        """Returns how many engines the front hears."""
        count = len((await self.http.get("/live/data")).json().get("replicas", ()))
        if not self.changes or self.changes[-1][1] != count:
            self.changes.append((self.now, count))
        return count

    async def watch(self, least: float) -> None:
        """Until one engine is left, for so long at least."""
        while await self.look() > 1 or self.now < least:
            if self.now > least + PATIENCE_SECONDS:
                return
            await asyncio.sleep(0.5)


async def measured(url: str, minutes: float, engines: float) -> Watch:
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as http:
        watch = Watch(http)
        await asyncio.gather(
            watch.load(60 * minutes, STEP * TOKENS / (engines * BUSY * ROWS)), watch.watch(60 * minutes + 5)
        )
        return watch


def main() -> None:
    end_on_sigterm()
    parser = flags(__doc__, "autoscale")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--engines", type=float, default=2.5, help="how many the load keeps 80 %% busy")
    args = parsed(parser)
    with serving(*WORDS, environment=PACED) as server:
        watch = asyncio.run(measured(server.url, args.minutes, args.engines))
    rows = [(f"{at:.0f}", str(count)) for at, count in watch.changes]
    about = f"Load for {args.engines:g} engines for {args.minutes:g} minutes: {dict(watch.statuses)} answers by status."
    tell(args, [about, "", *table(("second", "engines"), rows)], {"changes": watch.changes, **watch.statuses})


if __name__ == "__main__":
    main()
