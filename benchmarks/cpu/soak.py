"""Mixed traffic and attacks on one server for a while: every text as alone, and all that it holds back at its base.

    python -m benchmarks.cpu.soak --minutes 20 [--port 8000] [--clients 10] [--seed 0] [--log FILE]
        [-- more of baton serve]

Starts `baton serve` with the built-in model, two keys, few rows and memory for a third of what they want. A list of
seeded requests is answered one by one on the quiet server first. Then clients draw from that list for so many minutes,
plain and streamed, some leaving at a random token, while attackers send what must be refused. At the end: each text
that was read whole is the one of the quiet server, nothing failed, the probe's text and the gauges are as before,
files, threads and memory are near what they were, and the log has no traceback. Exit status 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

KEYS = ("soak-one", "soak-two")
READY_SECONDS, HEALTH_SECONDS = 5.0, 5.0
KV, POOL = 9 * 2**20, 64 * 2**20
RSS_GROWTH = KV + POOL + 192 * 2**20
SERVE = ["--max-batch-size", "4", "--max-waiting", "48", "--policy", "slo"]
SERVE += ["--kv-memory", str(KV), "--swap-memory", str(POOL), "--api-key", ",".join(KEYS), "--send-timeout", "5"]
AT_BASE = ("queries_running", "queries_waiting", "queries_prefilling", "queries_preempted", "kv_bytes_used")
WORDS = (
    "the",
    "fox",
    "ran",
    "over",
    "a",
    "hill",
    "and",
    "saw",
    "that",
    "it",
    "was",
    "late",
    "so",
    "went",
    "home",
    "to",
)
OVERLOADED = {429, 503, 504}  # what a good request may get from a server that has too much to do

Texts = tuple[tuple[str, str | None], ...]  # of each choice: its text, and why it ended


@dataclass(frozen=True)
class Case:
    """A request whose answer is a function of its content."""

    kind: str
    path: str
    body: dict[str, Any]

    @property
    def choices(self) -> int:
        return int(self.body.get("n", 1))


@dataclass
class Seen:
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    read: int = 0  # choices that were read to their end
    left: int = 0  # choices whose client left, or was refused
    health: list[float] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)

    def breach(self, what: str) -> None:
        self.breaches.append(what)


def cases(dice: random.Random, count: int) -> list[Case]:
    """Of all kinds in turn; chats share beginnings, as turns of one conversation do."""
    return [_MAKERS[number % len(_MAKERS)](dice) for number in range(count)]


def words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(count))


def completion(kind: str, dice: random.Random, prompt: int = 12, answer: int = 48, **more: Any) -> Case:
    body = {"prompt": words(dice, prompt), "max_tokens": answer, "temperature": 0, "seed": dice.randrange(2**31)}
    return Case(kind, "/v1/completions", {**body, **more})


def chat(kind: str, dice: random.Random, **more: Any) -> Case:
    said = ["What is 17 + 25?", "Is 2048 a leap year?", "Reverse the word fox.", "Count to five."]
    turns = dice.randint(1, 4)
    messages: list[dict[str, Any]] = [{"role": "system", "content": words(random.Random(1), 40)}]
    for turn in range(turns):
        messages.append({"role": "user", "content": said[turn]})
        if turn < turns - 1:
            messages.append({"role": "assistant", "content": "It is so."})
    body = {"messages": messages, "max_tokens": 40, "temperature": 0, "seed": dice.randrange(2**31)}
    return Case(kind, "/v1/chat/completions", {**body, **more})


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

_MAKERS: list[Callable[[random.Random], Case]] = [
    lambda dice: completion("greedy", dice),
    lambda dice: completion("long", dice, dice.randint(300, 900), dice.randint(200, 700), ignore_eos=True),
    lambda dice: completion("drawn", dice, temperature=dice.choice([0.7, 1.0, 2.0]), top_p=0.9, top_k=40, min_p=0.01),
    lambda dice: completion("cold", dice, temperature=dice.choice([1e-6, 1e-38, 1e-45]), top_p=0.5, top_k=7),
    lambda dice: completion("penalties", dice, temperature=1, frequency_penalty=1.5, presence_penalty=-2),
    lambda dice: completion("choices", dice, temperature=1, n=3),
    lambda dice: completion("logprobs", dice, logprobs=5),
    lambda dice: completion("echo", dice, 200, 4, echo=True, logprobs=20),
    lambda dice: completion("flood", dice, 8, 300, logit_bias={str(dice.randrange(4)): 100}, ignore_eos=True),
    lambda dice: completion("stop", dice, 8, 80, stop=["fox", " the"], ignore_eos=True),
    lambda dice: completion("regex", dice, structured_outputs={"regex": "[a-f]{4,30}(x|y)"}),
    lambda dice: completion("urgent", dice, 20, 120, priority=-5, ignore_eos=True),
    lambda dice: completion("deadline", dice, 20, 60, deadline_ms=600_000, user=f"user {dice.randrange(3)}"),
    lambda dice: chat("chat", dice),
    lambda dice: chat("chat drawn", dice, temperature=0.8, logprobs=True, top_logprobs=3),
    lambda dice: chat(
        "schema", dice, response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    ),
]


class Soak:
    """Clients of one server. `right`: what each case gives alone."""

    def __init__(self, url: str, some: list[Case], dice: random.Random) -> None:
        self._dice = dice
        self.cases = some
        self._host, port = url.removeprefix("http://").split(":")
        self._port = int(port)
        self.seen = Seen()
        self.right: dict[int, Texts] = {}
        self.http = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))

    def _key(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._dice.choice(KEYS)}"}

    async def alone(self) -> None:
        for number, case in enumerate(self.cases):
            response = await self.http.post(case.path, json=case.body, headers=self._key())
            if response.status_code != 200:
                self.seen.breach(f"{case.kind}, alone: {response.status_code} {response.text[:200]}")
                continue
            self.right[number] = _texts(response.json()["choices"])

    async def gauges(self) -> dict[str, float]:
        """All single metrics, without our prefix and the model's name."""
        page = (await self.http.get("/metrics", headers=self._key())).text
        rows = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("baton_")]
        return {name.removeprefix("baton_").replace('model_name="baton-builtin"', ""): float(at) for name, at in rows}

    # Good requests

    async def client(self, end: float) -> None:
        while time.monotonic() < end:
            number = self._dice.choice(list(self.right))
            case = self.cases[number]
            self.seen.kinds[case.kind] += 1
            try:
                await (self._streamed if self._dice.random() < 0.6 else self._plain)(number, case)
            except httpx.HTTPError as error:
                self.seen.left += case.choices
                self.seen.statuses[type(error).__name__] += 1

    async def _plain(self, number: int, case: Case) -> None:
        task = asyncio.ensure_future(self.http.post(case.path, json=case.body, headers=self._key()))
        if self._dice.random() < 0.15:
            await asyncio.wait([task], timeout=self._dice.random())
            if not task.done():
                task.cancel()
                self.seen.left += case.choices
                self.seen.statuses["left"] += 1
                return
        response = await task
        if self._accepted(case, response.status_code, response.text):
            self._compare(number, case, _texts(response.json()["choices"]))

    async def _streamed(self, number: int, case: Case) -> None:
        leave = self._dice.randint(1, 30) if self._dice.random() < 0.25 else None
        body = {**case.body, "stream": True}
        async with self.http.stream("POST", case.path, json=body, headers=self._key()) as response:
            if response.status_code != 200:
                self._accepted(case, response.status_code, (await response.aread()).decode())
                return
            parts: dict[int, list[Any]] = {}
            chunks = 0
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                said = json.loads(line[6:])
                if "error" in said:
                    code = said["error"].get("code")
                    self.seen.left += case.choices
                    self.seen.statuses[f"stream: {code}"] += 1
                    if code == "internal_error":
                        self.seen.breach(f"{case.kind}, streamed: {said['error']}")
                    return
                for choice in said.get("choices", ()):
                    parts.setdefault(choice["index"], []).append(choice)
                chunks += 1
                if leave is not None and chunks >= leave:
                    self.seen.left += case.choices
                    self.seen.statuses["left"] += 1
                    return
        self._accepted(case, 200, "")
        self._compare(number, case, tuple(_joined(parts[index]) for index in sorted(parts)))

    def _accepted(self, case: Case, status: int, text: str) -> bool:
        self.seen.statuses[str(status)] += 1
        if status == 200:
            self.seen.read += case.choices
            return True
        self.seen.left += case.choices
        if status not in OVERLOADED:
            self.seen.breach(f"{case.kind}: {status} {text[:200]}")
        return False

    def _compare(self, number: int, case: Case, texts: Texts) -> None:
        if texts != self.right[number]:
            self.seen.breach(f"{case.kind}: {texts!r:.300} is not as alone: {self.right[number]!r:.300}")

    # Bad ones

    async def attacker(self, end: float) -> None:
        attacks = [
            self._refused,
            self._schema,
            self._big_text,
            self._half_open,
            self._flood,
            self._slow,
            self._big_body,
        ]
        while time.monotonic() < end:
            attack = self._dice.choice(attacks)
            self.seen.kinds[f"attack: {attack.__name__[1:]}"] += 1
            with suppress(httpx.HTTPError, OSError):
                await attack()
            await asyncio.sleep(self._dice.random() * 0.5)

    async def _ask(self, path: str, content: bytes | str, expected: set[int], **headers: str) -> None:
        response = await self.http.post(
            path, content=content, headers={**self._key(), "content-type": "application/json", **headers}
        )
        self.seen.statuses[f"attack: {response.status_code}"] += 1
        if response.status_code not in expected | OVERLOADED:
            self.seen.breach(f"attack at {path} with {content[:80]!r}: {response.status_code} {response.text[:200]}")

    async def _refused(self) -> None:
        bad = [
            '{"prompt": "x"', "[]", '{"prompt": "x", "prompt": "y"}', '{"prompt": "x", "temperature": NaN}',
            f'{{"prompt": "x", "max_tokens": {"9" * 400}}}', f'{{"prompt": [{"9" * 5000}]}}',
            f'{{"prompt": "x", "seed": -{"9" * 400}}}', f'{{"prompt": {"[" * 3000}{"]" * 3000}}}',
            '{"prompt": "x", "logit_bias": {"99999999": 1}}', '{"prompt": "x", "no_such": 1}',
            '{"prompt": "x", "best_of": 1, "n": 2}', "\x00", '{"prompt": "x", "temperature": 1e400}',
        ]  # fmt: skip
        await self._ask("/v1/completions", self._dice.choice(bad), {400})
        await self._ask("/v1/completions", "{}", {401}, authorization="Bearer wrong")
        await self._ask("/v1/completions", "{}", {400, 415}, **{"content-encoding": "gzip"})

    async def _schema(self) -> None:
        forms: list[dict[str, Any]] = [
            {"regex": "((a{1,900}){1,900}){1,900}"}, {"regex": "(" * 900},
            {"json": {"type": "integer", "minimum": 2**70}}, {"json": {"const": 1e20}},
            {"json": {"enum": [f"{number}" for number in range(3000)]}},
            {"json": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
            {"json": {"type": "array", "minItems": 10**9, "items": {"type": "null"}}},
            {"grammar": "start: start start | start"},
        ]  # fmt: skip
        body = {"prompt": "x", "max_tokens": 8, "structured_outputs": self._dice.choice(forms)}
        await self._ask("/v1/completions", json.dumps(body), {200, 400})

    async def _big_text(self) -> None:
        text = self._dice.choice(["fox ", "x", "\ud7ff", "<|end|>"]) * self._dice.choice([10**4, 10**5, 9 * 10**5])
        path = self._dice.choice(["/tokenize", "/v1/completions"])
        await self._ask(path, json.dumps({"prompt": text, "max_tokens": 1}), {200, 400, 404, 413})

    async def _big_body(self) -> None:
        await self._ask("/v1/completions", b'{"prompt": "' + b"x" * (5 * 2**20), {400, 413})

    async def _half_open(self) -> None:
        _, writer = await asyncio.open_connection(self._host, self._port)
        try:
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEYS[0]}\r\n"
            writer.write(self._dice.choice([head, head + "content-length: 4000000\r\n\r\n{", "\x16\x03\x01"]).encode())
            await asyncio.sleep(self._dice.random() * 3)
        finally:
            writer.transport.abort()

    async def _flood(self) -> None:
        opening = (asyncio.open_connection(self._host, self._port) for _ in range(100))
        opened = await asyncio.gather(*opening, return_exceptions=True)
        await asyncio.sleep(self._dice.random())
        for one in opened:
            if not isinstance(one, BaseException):
                one[1].transport.abort()

    async def _slow(self) -> None:
        """A stream that is not read."""
        body = {"prompt": words(self._dice, 20), "max_tokens": 1500, "stream": True, "ignore_eos": True, "logprobs": 20}
        sent = json.dumps(body)
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1)
        try:
            head = f"POST /v1/completions HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            head += f"authorization: Bearer {KEYS[0]}\r\ncontent-type: application/json\r\ncontent-length: {len(sent)}"
            writer.write(f"{head}\r\n\r\n{sent}".encode())
            await reader.read(1)
            self.seen.left += 1
            await asyncio.sleep(self._dice.random() * 8)
        finally:
            writer.transport.abort()

    # How it is

    async def watcher(self, end: float) -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            with suppress(httpx.HTTPError):
                await self.http.get("/health")
            self.seen.health.append(time.monotonic() - began)
            await asyncio.sleep(1)

    async def at_rest(self) -> dict[str, float]:
        """The metrics once nothing is running any more. A server that does not come to rest in time is a breach."""
        end = time.monotonic() + READY_SECONDS
        while True:
            gauges = await self.gauges()
            ready = (await self.http.get("/ready", headers=self._key())).status_code
            busy = [name for name in AT_BASE if gauges[f"{name}{{}}"]]
            if ready == 200 and not busy:
                return gauges
            if time.monotonic() > end:
                self.seen.breach(f"not at rest after {READY_SECONDS:g} s: /ready {ready}, {busy}")
                return gauges
            await asyncio.sleep(0.1)


def _texts(choices: list[dict[str, Any]]) -> Texts:
    return tuple(_joined([choice]) for choice in sorted(choices, key=lambda one: int(one["index"])))


def _joined(parts: list[dict[str, Any]]) -> tuple[str, str | None]:
    """A choice's text, its tools' arguments being text as well, and why it ended."""
    text = ""
    for part in parts:
        said = part.get("delta") or part.get("message") or part
        text += said.get("content") or said.get("text") or ""
        for call in said.get("tool_calls") or ():
            text += call["function"].get("name") or ""
            text += call["function"].get("arguments") or ""
    return text, next((part["finish_reason"] for part in parts if part.get("finish_reason")), None)


def held(process: psutil.Process) -> dict[str, int]:
    return {"files": process.num_fds(), "threads": process.num_threads(), "RSS": process.memory_info().rss}


async def soak(url: str, server: psutil.Process, args: argparse.Namespace) -> Seen:
    dice = random.Random(args.seed)
    work = Soak(url, cases(dice, args.cases), dice)
    async with work.http:
        await work.alone()
        await work.alone()  # stored texts count as in use there
        before, base = await work.at_rest(), held(server)
        end = time.monotonic() + 60 * args.minutes
        tasks: list[Awaitable[None]] = [work.client(end) for _ in range(args.clients)]
        tasks += [work.attacker(end) for _ in range(3)] + [work.watcher(end)]
        await asyncio.gather(*tasks)
        after = await work.at_rest()
        again = Soak(url, work.cases, dice)
        async with again.http:
            await again.alone()
        for number, texts in again.right.items():
            if texts != work.right.get(number):
                work.seen.breach(f"{work.cases[number].kind}, alone again: {texts!r:.200}")
        await asyncio.sleep(min(12.0, 60 * args.minutes))  # idle threads and connections end
        now = held(server)
    outcomes = {name: after[name] - before[name] for name in after if name.startswith("queries_total")}
    _judge(work.seen, outcomes, base, now)
    preempted = sum(after[name] - before.get(name, 0.0) for name in after if name.startswith("preemptions_total"))
    recomputed = after["recomputed_tokens_total{}"] - before["recomputed_tokens_total{}"]
    _show(work.seen, outcomes, base, now, {"preemptions": preempted, "tokens recomputed": recomputed})
    return work.seen


def _judge(seen: Seen, outcomes: dict[str, float], base: dict[str, int], now: dict[str, int]) -> None:
    count = {name.split('outcome="')[1].split('"')[0]: int(value) for name, value in outcomes.items()}
    if count["failed"]:
        seen.breach(f"{count['failed']} queries failed")
    if not seen.read <= count["finished"]:
        seen.breach(f"{seen.read} answers were read, and {count['finished']} finished")
    for name, most in (("files", 16), ("threads", 16), ("RSS", RSS_GROWTH)):
        if now[name] > base[name] + most:
            seen.breach(f"{name}: {base[name]:,} before, {now[name]:,} after")
    if max(seen.health, default=0) > HEALTH_SECONDS:
        seen.breach(f"/health took {max(seen.health):.1f} s")


def _show(
    seen: Seen, outcomes: dict[str, float], base: dict[str, int], now: dict[str, int], more: dict[str, float]
) -> None:
    rows = [(kind, str(count)) for kind, count in sorted(seen.kinds.items())]
    rows += [(f"answers: {status}", str(count)) for status, count in sorted(seen.statuses.items())]
    rows += [(name.replace(",}", "}"), f"{value:,.0f}") for name, value in {**outcomes, **more}.items()]
    rows += [(name, f"{base[name]:,} before, {now[name]:,} after") for name in base]
    rows += [("/health, longest", f"{max(seen.health, default=0) * 1000:.0f} ms of {len(seen.health)}")]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--cases", type=int, default=5 * len(_MAKERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=None, help="where the server's own lines go")
    parser.add_argument("serve", nargs="*", help="more arguments of baton serve")
    args = parser.parse_args()
    log = args.log or Path(tempfile.mkstemp(suffix=".log", prefix="soak-")[1])
    command = [sys.executable, "-m", "baton", "serve", "--port", str(args.port), *SERVE, *args.serve]
    with log.open("w") as lines:
        server = subprocess.Popen(command, stdout=lines, stderr=lines)
    try:
        while " http://" not in (said := log.read_text()) or "\nready" not in said:
            if server.poll() is not None:
                print(said)
                return 1
            time.sleep(0.2)
        url = next(word for word in said.split("\nready")[1].split() if word.startswith("http://"))
        seen = asyncio.run(soak(url, psutil.Process(server.pid), args))
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
    said = log.read_text()
    if status:
        seen.breach(f"the server's exit status: {status}")
    if "Traceback" in said:
        seen.breach(f"tracebacks in {log}: {said.count('Traceback')}")
    for what, count in Counter(seen.breaches).most_common(30):
        print(f"BREACH {count} x {what}")
    print("kept all promises" if not seen.breaches else f"{len(seen.breaches)} breaches; the server's log: {log}")
    return 1 if seen.breaches else 0


if __name__ == "__main__":
    sys.exit(main())
