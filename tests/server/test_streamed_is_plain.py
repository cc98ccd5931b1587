"""A streamed answer is the plain one, however the engine's news are cut into updates and deliveries."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.events import Update
from server.scripted import CONTEXT, ScriptedLoop, app_of

TEXTS = st.text('a\u00e9\u65e5\U0001f98a\n\r"\\ \u2028:', min_size=1, max_size=12)


class Cut(ScriptedLoop):
    """Says its answer in updates that end at these places, several of which may be delivered at once."""

    def __init__(self, answer: str, cuts: list[int], together: int) -> None:
        super().__init__(answer)
        self.cuts = cuts
        self.together = together

    def release(self) -> None:
        live, self.live = list(self.live.values()), {}
        for query, deliver in live:
            letters = super()._updates(query)
            places = sorted({0, len(letters), *(cut % (len(letters) + 1) for cut in self.cuts)})
            merged = [_merged(letters[start:stop]) for start, stop in pairwise(places)]
            for at in range(0, len(merged), self.together):
                deliver(merged[at : at + self.together])


def _merged(updates: list[Update]) -> Update:
    tokens = tuple(token for update in updates for token in update.token_ids)
    logprobs = tuple(one for update in updates for one in update.logprobs)
    return replace(
        updates[-1],
        token_ids=tokens,
        text="".join(update.text for update in updates),
        logprobs=logprobs,
        prompt_logprobs=updates[0].prompt_logprobs,
    )


async def both(loop: Cut, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The plain answer, and the events of the streamed one."""
    transport = httpx.ASGITransport(app=app_of(loop), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        plain = await client.post(path, json=body)
        streamed = await client.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    loop.close()
    assert plain.status_code == streamed.status_code == 200, (plain.text, streamed.text)
    assert streamed.text.endswith("\n\n")
    events = streamed.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return plain.json(), [json.loads(event[6:]) for event in events[:-1]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    answer=TEXTS,
    cuts=st.lists(st.integers(0, 40), max_size=6),
    together=st.integers(1, 3),
    n=st.integers(1, 3),
    limit=st.integers(1, CONTEXT - 8),
    logprobs=st.sampled_from([None, 0, 2]),
    chat=st.booleans(),
)
def test_streamed_is_plain(
    answer: str, cuts: list[int], together: int, n: int, limit: int, logprobs: int | None, chat: bool
) -> None:
    body: dict[str, Any] = {"n": n, "max_tokens": limit}
    if chat:
        body |= {"messages": [{"role": "user", "content": "x"}]}
        body |= {} if logprobs is None else {"logprobs": True, "top_logprobs": logprobs}
    else:
        body |= {"prompt": "x", "logprobs": logprobs}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    plain, events = asyncio.run(both(Cut(answer, cuts, together), path, body))
    assert events[-1]["choices"] == [] and events[-1]["usage"] == plain["usage"]
    for choice in plain["choices"]:
        mine = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == choice["index"]]
        said = [(one["delta"].get("content") or "") if chat else one["text"] for one in mine]
        assert "".join(said) == (choice["message"]["content"] if chat else choice["text"])
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == [choice["finish_reason"]]
        assert mine[-1]["finish_reason"] and (not chat or mine[0]["delta"]["role"] == "assistant")
        if logprobs is not None:
            key = "content" if chat else "tokens"
            told = [entry for one in mine if one["logprobs"] for entry in one["logprobs"][key]]
            assert told == choice["logprobs"][key]
