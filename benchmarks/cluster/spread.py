"""Where a front's two engines are asked: conversations, a prefix that all share, and a burst; against one engine.

    python -m benchmarks.cluster.spread [--json FILE]

`baton serve --replicas 2` on Ray Serve, and `baton serve` with one engine of as many rows as each. Conversations:
12 of 5 turns at once, each turn with all that was said before; `cached`: of their prompt tokens, how many were found
stored. Shared prefix: 16 clients, twice as many as one engine has rows for, ask 10 times each with the same beginning.
Burst: 16 requests at once to idle engines.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from typing import Any

import httpx

from benchmarks.cluster.served import end_on_sigterm, serving
from benchmarks.report import flags, parsed, table, tell

ROWS = ("--max-batch-size", "8")
TALKS, TURNS, CLIENTS, EACH, BURST, TOKENS = 12, 5, 16, 10, 16, 24
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


def words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(count))


class Asking:
    """Requests of one server."""

    def __init__(self, http: httpx.AsyncClient, dice: random.Random) -> None:
        self._http = http
        self._dice = dice
        self.prompt = self.cached = 0

    async def ask(self, prompt: str) -> str:
        body = {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
        answer: Any = (await self._http.post("/v1/completions", json=body)).raise_for_status().json()
        self.prompt += answer["usage"]["prompt_tokens"]
        self.cached += (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return str(answer["choices"][0]["text"])

    async def talk(self, dice: random.Random) -> None:
        said = words(dice, 20)
        for _ in range(TURNS):
            said += await self.ask(said) + words(dice, 10)

    async def talks(self) -> float:
        """Returns the share of prompt tokens that were found stored."""
        self.prompt = self.cached = 0
        await asyncio.gather(*(self.talk(random.Random(self._dice.random())) for _ in range(TALKS)))
        return self.cached / self.prompt

    async def shared(self) -> None:
        prefix = words(self._dice, 60)

        async def client(dice: random.Random) -> None:
            for _ in range(EACH):
                await self.ask(prefix + words(dice, 5))

        await asyncio.gather(*(client(random.Random(self._dice.random())) for _ in range(CLIENTS)))

    async def burst(self) -> None:
        await asyncio.gather(*(self.ask(words(self._dice, 12)) for _ in range(BURST)))

    async def generated(self) -> Counter[str]:
        """Tokens that each engine has generated."""
        page = (await self._http.get("/metrics")).text
        found = re.findall(r'baton_replica_generated_tokens_total\{.*replica="([^"]+)"\} (\S+)', page)
        return Counter({name: int(float(value)) for name, value in found})


async def parted(asking: Asking, what: Any) -> list[int]:
    """What each engine generated meanwhile, in tokens."""
    before = await asking.generated()
    await what()
    after = await asking.generated()
    return sorted(after[name] - before[name] for name in after)


async def measured(url: str, seed: int, *, several: bool) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as http:
        asking = Asking(http, random.Random(seed))
        found: dict[str, Any] = {"cached": await asking.talks()}
        if several:
            found["shared"] = await parted(asking, asking.shared)
            found["burst"] = await parted(asking, asking.burst)
        return found


def main() -> None:
    end_on_sigterm()
    args = parsed(flags(__doc__, "spread"))
    with serving("--threads", "1", *ROWS) as server:
        one = asyncio.run(measured(server.url, args.seed, several=False))
    with serving("--replicas", "2", "--replica-cpus", "1", *ROWS) as server:
        two = asyncio.run(measured(server.url, args.seed, several=True))
    rows = [
        ("12 conversations of 5 turns: cached", f"{two['cached']:.1%}, one engine {one['cached']:.1%}"),
        ("a shared prefix: tokens of each engine", " and ".join(f"{count:,}" for count in two["shared"])),
        ("a burst of 16: queries of each engine", " and ".join(str(count // TOKENS) for count in two["burst"])),
    ]
    tell(args, table(("load", "found"), rows), {"one": one, "two": two})


if __name__ == "__main__":
    main()
