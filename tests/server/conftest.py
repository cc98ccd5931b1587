"""The server over a scripted engine: in this process (`http`), and on a real port (`base_url`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from server.listening import listening
from server.scripted import ScriptedLoop, app_of


@pytest.fixture
def loop() -> Iterator[ScriptedLoop]:
    loop = ScriptedLoop()
    yield loop
    loop.close()


@pytest.fixture
async def http(loop: ScriptedLoop) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app_of(loop), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def base_url(loop: ScriptedLoop) -> Iterator[str]:
    with listening(app_of(loop)) as address:
        yield address
