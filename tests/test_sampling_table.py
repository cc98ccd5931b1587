"""One line in `SamplingParams` is a field everywhere: checks, HTTP, OpenAPI, the chat page, `/set`."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from baton.chat.conversation import SETTABLE
from baton.core.errors import InvalidValue
from baton.core.limits import LimitExceeded, Limits
from baton.core.sampling import SAMPLING_FIELDS, Group, SamplingField, SamplingParams
from baton.sampling.draw import FILTERS, NO_FILTERS, filters_of
from baton.server.page_inputs import with_inputs
from baton.server.schema import ChatRequest, CompletionRequest
from server.scripted import ScriptedLoop, app_of

BOUNDED = [known for known in SAMPLING_FIELDS if known.low is not None]
SHOWN = [known for known in SAMPLING_FIELDS if known.group]
named = pytest.mark.parametrize("known", BOUNDED, ids=lambda known: known.name)


@named
def test_bounds_are_checked(known: SamplingField) -> None:
    low, high = known.bounds()
    for wrong in (low - 1, high + 1, True, "1", *([low] if known.above else [])):
        with pytest.raises(InvalidValue) as refused:
            SamplingParams(**{known.name: wrong})  # type: ignore[arg-type]
        assert refused.value.param == known.name


@named
def test_limits_bound_what_they_are_named_for(known: SamplingField) -> None:
    if not known.limit:
        return
    most = getattr(Limits(), known.limit)
    Limits().check(SamplingParams(**{known.name: most}))  # type: ignore[arg-type]
    for beyond in (most + 1, *([-most - 1] if known.signed else [])):
        with pytest.raises(LimitExceeded, match=re.escape(known.name)) as refused:
            Limits().check(SamplingParams(**{known.name: beyond}))  # type: ignore[arg-type]
        assert refused.value.param == known.name


@pytest.mark.parametrize("asked", [ChatRequest, CompletionRequest])
def test_requests_have_the_fields_with_their_defaults(asked: Any) -> None:
    own = {"n", "max_tokens", "logprobs", "prompt_logprobs", "skip_special_tokens"}
    for known in SAMPLING_FIELDS:
        if known.kind in (int, float, bool) and known.name not in own:
            assert asked.model_fields[known.name].default == known.default
            assert asked.model_fields[known.name].description == known.about


def test_the_api_document_has_the_bounds() -> None:
    schemas = app_of(ScriptedLoop()).openapi()["components"]["schemas"]
    for known in BOUNDED:
        if known.name in ("max_tokens", "logprobs", "prompt_logprobs"):
            continue
        told = next(kind for kind in schemas["ChatRequest"]["properties"][known.name]["anyOf"] if "type" in kind)
        low, high = known.bounds(Limits())
        assert (told.get("exclusiveMinimum" if known.above else "minimum"), told["maximum"]) == (low, high)


async def test_the_chat_page_has_an_input_for_each_that_is_shown() -> None:
    transport = httpx.ASGITransport(app_of(ScriptedLoop()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        page = (await http.get("/")).text
    assert "<!-- sampling" not in page
    for known in SHOWN:
        assert page.count(f'name="{known.name}" type="number"') == 1
    assert 'name="top_k" type="number" step="1" placeholder="all"' in page
    assert 'name="seed" type="number" step="1" max="9007199254740991" placeholder="random"' in page


def test_places_of_a_page_are_filled_by_group() -> None:
    page = with_inputs(b"a <!-- sampling: filter --> b").decode()
    assert re.findall(r'name="(\w+)"', page) == list(FILTERS)


def test_a_conversation_sets_what_is_shown_and_stop_strings() -> None:
    assert list(SETTABLE) == [*(known.name for known in SHOWN), "stop"]


def test_filters_are_those_of_the_table() -> None:
    assert [known.name for known in SAMPLING_FIELDS if known.group is Group.FILTER] == list(FILTERS)
    assert filters_of(SamplingParams()) == NO_FILTERS
    for name in FILTERS:
        assert filters_of(SamplingParams(**{name: 1 if name != "top_p" else 0.5})) != NO_FILTERS  # type: ignore[arg-type]
