"""`baton chat`: a conversation with a model in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from baton.chat.conversation import converse
from baton.chat.local import Here
from baton.cli.show import errors
from baton.compose import model_name, open_engine
from baton.core.config import Config


def run_chat(config: Config, *, system: str | None, sampling: Mapping[str, Any]) -> None:
    """A conversation with a model in this process, in one row of its batch."""
    with errors.status(f"loading {model_name(config)}") if errors.is_terminal else contextlib.nullcontext():
        engine = open_engine(config)
    try:
        converse(Here(engine.client), system=system, sampling=sampling)
    finally:
        engine.close()
