"""What engines for prompts bring on this machine: `python -m benchmarks.cluster.prompts_apart`.

Two engines of one core each, as `--replicas 2` and as `--replicas 1 --prefill-replicas 1`, in turn: streams with long
prompts and short answers, which is where prompts hold up answers most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import httpx

from benchmarks.cluster.served import end_on_sigterm, serving

WAYS = {"together": ("--replicas", "2"), "apart": ("--replicas", "1", "--prefill-replicas", "1")}


async def asked(url: str, streams: int, prompt: int, tokens: int) -> tuple[float, float, float]:
    """Tokens a second of all streams; of each, the median seconds to its first token, and between two of them."""
    firsts: list[float] = []
    gaps: list[float] = []

    async def one(client: httpx.AsyncClient, at: int) -> None:
        body = {"prompt": f"{at} " * (prompt // 3), "max_tokens": tokens, "ignore_eos": True, "stream": True}
        last, first = time.perf_counter(), True
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"]:
                    now = time.perf_counter()
                    (firsts if first else gaps).append(now - last)
                    last, first = now, False

    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=600) as client:
        await asyncio.gather(*(one(client, at) for at in range(streams)))
    took = time.perf_counter() - began
    return streams * tokens / took, statistics.median(firsts), statistics.median(gaps)


def main() -> None:
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=900)
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    each = ("--replica-cpus", "1", "--max-batch-size", "8")
    with serving(*WAYS["together"], *each) as together, serving(*WAYS["apart"], *each) as apart:
        urls = {"together": together.url, "apart": apart.url}
        for at in range(given.rounds + 1):  # the first warms up
            for name, url in urls.items():
                rate, first, gap = asyncio.run(asked(url, given.streams, given.prompt, given.tokens))
                if at:
                    told = f"first {first * 1e3:6.0f} ms  between {gap * 1e3:5.1f} ms"
                    print(f"{name:<9} {rate:6.0f} tokens/s  {told}", flush=True)


if __name__ == "__main__":
    main()
