"""An app on a real port, for as long as a test needs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from baton.core.limits import Limits
from baton.server.run import bind, server_config, url_of


@contextmanager
def listening(app: FastAPI, limits: Limits | None = None) -> Iterator[str]:
    """Yields its address. At the end connections are cut, also those with an answer under way."""
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, limits or Limits()))
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield url_of(bound)
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
        if hasattr(app.state, "close"):  # none of another server's
            app.state.close()
