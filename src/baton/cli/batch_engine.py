"""Answers the lines of `baton batch` with a model in this process, by the server's code without a server."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from baton.cli.show import errors
from baton.compose import model_name, open_engine
from baton.core.config import Config
from baton.jobs.runner import Ask
from baton.server.background import Background
from baton.server.workers import Workers


@contextlib.contextmanager
def asking(config: Config) -> Generator[tuple[Ask, int], None, None]:
    """Yields what asks the model, and how many lines to ask at once."""
    with errors.status(f"loading {model_name(config)}") if errors.is_terminal else contextlib.nullcontext():
        engine = open_engine(config)
    workers = Workers(engine.settings.limits)
    background = Background(engine.client, workers)
    try:
        yield background.ask, background.at_once
    finally:
        background.close()
        workers.close()
        engine.close()
