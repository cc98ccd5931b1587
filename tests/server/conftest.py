"""The server over a scripted engine: in this process (`http`), and on a real port (`base_url`)."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import uvicorn

from baton.server.run import bind, url_of
from server.scripted import ScriptedLoop, app_of


@pytest.fixture
def loop() -> ScriptedLoop:
    return ScriptedLoop()


@pytest.fixture
async def http(loop: ScriptedLoop) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app_of(loop), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def base_url(loop: ScriptedLoop) -> Iterator[str]:
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app_of(loop), lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield url_of(bound)
    server.should_exit = True
    server.force_exit = True
    thread.join(10)
