"""An engine is killed under 16 live streams of all kinds, round by round: what clients hear, and for how long nothing.

    python -m benchmarks.cluster.outlive [--rounds 5] [--json FILE]

`baton serve --replicas 2` answers 16 seeded streams (greedy and drawn, penalties, several choices, stop strings, forms,
log-probabilities, chats) while nothing happens. Then it does so again in each round, and one of the engines is killed
(SIGKILL) when half a dozen events of each have come. `equal`: streams whose text and finish reasons are as before.
`longest silence`: of any stream, between two events. `back`: until both engines are heard again.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.cluster.served import Server, end_on_sigterm, serving
from benchmarks.report import flags, parsed, table, tell

STREAMS, BEGUN = 16, 6
WORDS = ("--replicas", "2", "--replica-cpus", "1", "--max-batch-size", "8", "--no-prefix-cache")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 30, "maxItems": 60}
ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    (COMPLETIONS, {"prompt": "Once upon a time", "temperature": 0}),
    (COMPLETIONS, {"prompt": "Tell me", "temperature": 1.0, "logprobs": 2}),
    (CHAT, {"messages": [{"role": "user", "content": "Count to one hundred."}], "temperature": 0.9, "n": 2}),
    (COMPLETIONS, {"prompt": "1, 2, 3,", "temperature": 1.2, "presence_penalty": 0.7, "frequency_penalty": 0.3}),
    (CHAT, {"messages": [{"role": "user", "content": "Numbers."}], "structured_outputs": {"json": SCHEMA}}),
    (COMPLETIONS, {"prompt": "a b c", "temperature": 1.1, "stop": ["zqx", "qqz"]}),
    (COMPLETIONS, {"prompt": "The end of", "temperature": 0.8, "top_p": 0.9, "top_k": 20}),
    (COMPLETIONS, {"prompt": "x" * 60, "temperature": 1.0, "logit_bias": {"40": 3}}),
)


@dataclass
class Heard:
    """What one client heard."""

    texts: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    ends: dict[int, str] = field(default_factory=dict)
    events: int = 0
    silence: float = 0.0
    trouble: str = ""

    @property
    def whole(self) -> Any:
        return None if self.trouble else (dict(self.texts), self.ends)


async def stream(http: httpx.AsyncClient, at: int, heard: Heard) -> None:
    path, body = ASKED[at % len(ASKED)]
    long = {} if "structured_outputs" in body else {"min_tokens": 120}
    asked = {**body, **long, "seed": at, "max_tokens": 150, "stream": True}
    last = time.perf_counter()
    async with http.stream("POST", path, json=asked) as response:
        if response.status_code != 200:
            heard.trouble = (await response.aread()).decode()
            return
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now, event = time.perf_counter(), json.loads(line[6:])
            if heard.events:
                heard.silence = max(heard.silence, now - last)
            last = now
            heard.events += 1
            heard.trouble = heard.trouble or str(event.get("error", ""))
            for choice in event.get("choices", ()):
                heard.texts[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
                if choice["finish_reason"]:
                    heard.ends[choice["index"]] = choice["finish_reason"]


async def asked(http: httpx.AsyncClient, victim: Any = None) -> list[Heard]:
    """All streams at once. `victim`: a process that is killed when they have begun."""
    heard = [Heard() for _ in range(STREAMS)]

    async def kill() -> None:
        while victim is not None and sum(one.events for one in heard) < BEGUN * STREAMS:
            await asyncio.sleep(0.002)
        if victim is not None:
            victim.kill()

    await asyncio.gather(*(stream(http, at, one) for at, one in enumerate(heard)), kill())
    return heard


async def measured(server: Server, rounds: int, dice: random.Random) -> list[tuple[str, int, float, float]]:
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=httpx.Limits(max_connections=None)) as http:
        await asked(http)
        uncut = await asked(http)
        if troubles := [one.trouble for one in uncut if one.trouble]:
            raise RuntimeError(troubles[0])
        rows = [("nothing", STREAMS, max(one.silence for one in uncut), 0.0)]
        for _ in range(rounds):
            heard = await asked(http, dice.choice(server.engines()))
            equal = sum(one.whole == right.whole for one, right in zip(heard, uncut, strict=True))
            ended = time.monotonic()
            while len((await http.get("/live/data")).json().get("replicas", ())) < 2 or len(server.engines()) < 2:
                await asyncio.sleep(0.2)
            rows.append(("an engine", equal, max(one.silence for one in heard), time.monotonic() - ended))
        return rows


def main() -> None:
    end_on_sigterm()
    parser = flags(__doc__, "outlive")
    parser.add_argument("--rounds", type=int, default=5)
    args = parsed(parser)
    with serving(*WORDS) as server:
        rows = asyncio.run(measured(server, args.rounds, random.Random(args.seed)))
    shown = [(what, f"{equal} of {STREAMS}", f"{silence:.2f}", f"{back:.0f}") for what, equal, silence, back in rows]
    tell(args, table(("killed", "equal", "longest silence s", "back after s"), shown), {"rounds": rows})


if __name__ == "__main__":
    main()
