"""The same workloads over HTTP, against any server that speaks OpenAI's completions with streams.

Honest about itself: `Run.late` is how late queries were asked, and `lag` how late this process's own event loop came
round while it measured. If either is not small against what is reported, the client is the bottleneck.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from baton.bench.drive import TURN_BEFORE_FAILED, Mode, Response, Run
from baton.bench.sse_client import BROKEN, Wire
from baton.bench.workload import Workload
from baton.core.clock import Clock
from baton.core.errors import BatonError

_SAFE_VOCABULARY = 1000
_BEAT_SECONDS = 0.02
_PATIENCE_SECONDS = 3600.0


class LoadError(BatonError):
    """The server's answers cannot be measured."""

    exit_status = 1


@dataclass(frozen=True, slots=True)
class Target:
    """A server: `url` without /v1. `extra`: fields of each request beside prompt, length and model."""

    url: str
    model: str
    key: str | None
    extra: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """What this process itself took.

    `lag`: seconds, the 99th percentile of how late its event loop came round. `cpu_seconds`: of all its threads.
    """

    run: Run
    lag: float
    cpu_seconds: float


def find_target(url: str, key: str | None, model: str | None, extra: dict[str, Any]) -> Target:
    """Asks the server for its model if none is named. Raises LoadError in one sentence."""
    base = url.rstrip("/").removesuffix("/v1")
    try:
        Wire(base, {})
    except ValueError as error:
        raise LoadError(f"{url}: no http:// or https:// address ({error})") from None
    if model is None:
        try:
            answer = httpx.get(f"{base}/v1/models", headers=_headers(key), timeout=30)
            answer.raise_for_status()
            model = str(answer.json()["data"][0]["id"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
            raise LoadError(f"{base}/v1/models: {error or type(error).__name__}") from None
    return Target(base, model, key, extra)


def vocabulary_of(target: Target) -> int:
    """How many tokens the server's model knows, if it says so; else as many as any model has."""
    try:
        answer = httpx.get(f"{target.url}/tokenizer_info", headers=_headers(target.key), timeout=30)
        return int(answer.json()["vocab_size"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return _SAFE_VOCABULARY


def slots_of(target: Target) -> dict[str, int]:
    """Token slots by kind that the server has computed so far, if it is a baton; else nothing."""
    try:
        page = httpx.get(f"{target.url}/metrics", headers=_headers(target.key), timeout=30).text
    except httpx.HTTPError:
        return {}
    slots = re.findall(r'^baton_token_slots_total\{.*kind="(\w+)".*\} ([\d.e+]+)$', page, re.MULTILINE)
    return {kind: int(float(value)) for kind, value in slots}


def drive_over_http(
    target: Target,
    workload: Workload,
    prompts: Sequence[Sequence[int] | str],
    clock: Clock,
    *,
    mode: Mode,
    at_once: int,
    on_done: Callable[[], None] = lambda: None,
) -> Measured:
    """As `drive`; offline is all at once over as many connections as it has queries."""
    return asyncio.run(_Load(target, workload, prompts, clock, on_done).run(mode, at_once))


class _Load:
    def __init__(
        self,
        target: Target,
        workload: Workload,
        prompts: Sequence[Sequence[int] | str],
        clock: Clock,
        on_done: Callable[[], None],
    ) -> None:
        self._target = target
        self._workload = workload
        self._asks = workload.asks
        self._prompts = prompts
        self._clock = clock
        self._on_done = on_done
        self._responses: dict[int, Response] = {}
        self._said: dict[int, str] = {}
        self._began = 0.0
        self._late = 0.0
        self._lags: list[float] = []

    async def run(self, mode: Mode, at_once: int) -> Measured:
        self._wire = Wire(self._target.url, _headers(self._target.key))
        cpu_seconds = time.process_time()
        self._began = self._clock()
        beat = asyncio.create_task(self._beat())
        conversations = self._workload.conversations()
        slots = asyncio.Semaphore(at_once if mode is Mode.CLOSED else len(conversations))
        await asyncio.gather(*(self._in_turn(conversation, mode, slots) for conversation in conversations))
        cpu_seconds = time.process_time() - cpu_seconds
        beat.cancel()
        self._wire.close()
        responses = [self._responses[number] for number in range(len(self._asks))]
        end = max((one.times[-1] for one in responses if one.times), default=0.0)
        lags = sorted(self._lags)
        return Measured(Run(end, responses, self._late), lags[int(len(lags) * 0.99)] if lags else 0.0, cpu_seconds)

    async def _in_turn(self, conversation: Sequence[int], mode: Mode, slots: asyncio.Semaphore) -> None:
        if mode is Mode.TIMED:
            due = self._asks[conversation[0]].at
            await asyncio.sleep(max(0.0, due - self._now()))
            self._late = max(self._late, self._now() - due)
        async with slots:
            for number in conversation:
                response = self._responses[number] = Response(self._now())
                await self._try(number, response)
                self._on_done()

    async def _try(self, number: int, response: Response) -> None:
        after = self._asks[number].after
        if after is not None and self._responses[after].error:
            response.error = TURN_BEFORE_FAILED
            return
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._ask(number, response)
        except (*BROKEN, KeyError, TypeError, AttributeError) as error:
            response.error = f"{type(error).__name__}: {error}"
        if response.error is None and not response.times:
            response.error = "the answer had no token"

    def _prompt(self, number: int) -> Sequence[int] | str:
        """The prompt with everything that was said before it, as text, because answers come without token ids."""
        prompt, after = self._prompts[number], self._asks[number].after
        if after is not None:
            prompt = f"{self._said.pop(after)}{self._responses[after].text} {prompt}"
        if isinstance(prompt, str):
            self._said[number] = prompt
        return prompt

    async def _ask(self, number: int, response: Response) -> None:
        prompt = self._prompt(number)
        asked = {
            "model": self._target.model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": self._asks[number].answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._target.extra,
        }
        async with self._wire.post("/v1/completions", json.dumps(asked).encode()) as answer:
            if answer.status != 200:
                response.error = f"{answer.status}: {(await answer.body()).decode(errors='replace')[:200]}"
                return
            async for line in answer.lines():
                if line.startswith(b"data:") and (event := line[5:].strip()) not in (b"", b"[DONE]"):
                    self._take(json.loads(event), response)
        if response.generated is None:
            response.generated, response.exact_count = len(response.times), False

    def _take(self, chunk: dict[str, Any], response: Response) -> None:
        if "error" in chunk:
            response.error = str(chunk["error"])[:200]
            return
        response.text += "".join(choice.get("text") or "" for choice in chunk.get("choices") or [])
        if any(choice.get("text") or choice.get("finish_reason") is None for choice in chunk.get("choices") or []):
            response.times.append(self._now())
        if chunk.get("usage"):
            usage = chunk["usage"]
            response.generated = int(usage["completion_tokens"])
            response.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            response.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    async def _beat(self) -> None:
        while True:
            due = self._clock() + _BEAT_SECONDS
            await asyncio.sleep(_BEAT_SECONDS)
            self._lags.append(max(0.0, self._clock() - due))

    def _now(self) -> float:
        return self._clock() - self._began


def _headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}
