"""The models of a server with several, and what it has not."""

from __future__ import annotations

import os
from typing import Protocol

from baton.core.errors import SettingError


class SeveralSettings(Protocol):
    """The settings that are looked at here; see `Config`."""

    @property
    def model(self) -> str | None: ...

    @property
    def models(self) -> tuple[str, ...]: ...

    @property
    def load_on_demand(self) -> bool: ...

    @property
    def unload_after(self) -> float: ...

    @property
    def served_model_name(self) -> str | None: ...

    @property
    def trace(self) -> str | None: ...

    @property
    def batch_dir(self) -> str | None: ...

    @property
    def handover(self) -> str | None: ...


def named_models(config: SeveralSettings) -> dict[str, str]:
    """Returns the models of a server with several by the names that requests use. NAME=ID gives one a name.

    Raises SettingError if two have the same name.
    """
    named: dict[str, str] = {}
    for text in config.models:
        name, equals, source = text.partition("=")
        if not equals or os.path.exists(text):
            name = source = text
        if not name or not source:
            raise SettingError(f"{text}: a model is given as ID, FOLDER or NAME=ID", param="models")
        if name in named:
            raise SettingError(f"two models are called {name}: NAME=ID gives one another name", param="models")
        named[name] = source
    return named


def check_several(config: SeveralSettings) -> None:
    """Raises SettingError for what a server with several models, or one that is loaded on demand, has not."""
    if not config.models:
        if config.load_on_demand or config.unload_after:
            flag = "--load-on-demand" if config.load_on_demand else "--unload-after"
            raise SettingError(f"{flag}: name the models to load", param="load_on_demand")
        return
    if config.unload_after and not config.load_on_demand:
        message = "--unload-after: a model comes back only with --load-on-demand: add it"
        raise SettingError(message, param="unload_after")
    if config.model is not None:
        raise SettingError("give either one model or several, not both", param="models")
    if config.served_model_name is not None:
        raise SettingError("--served-model-name is for one model: give several as NAME=ID", param="served_model_name")
    if config.trace is not None:
        raise SettingError("--trace is for one model: each writes a file of its own", param="trace")
    if config.batch_dir is not None:
        message = "--batch-dir is for one model; `baton batch --server` asks any server"
        raise SettingError(message, param="batch_dir")
    if config.handover is not None:
        raise SettingError("--handover is for one model: start a server for each", param="handover")
    named_models(config)
