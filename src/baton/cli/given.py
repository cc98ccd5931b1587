"""The settings that a command line gives."""

from __future__ import annotations

import dataclasses
from typing import Any

from baton.cli.logs import start_logging
from baton.cli.refuse import refuse
from baton.core.config import OLD_NAMES, Config, load_config


def config_of(flags: dict[str, Any], config_file: str | None) -> Config:
    config = load_config(flags, file=config_file)
    refuse(config)
    start_logging(config.log_level)
    return config


def parted(options: dict[str, Any], config_file: str | None) -> tuple[Config, dict[str, Any]]:
    """Splits a verb's options into the settings and the verb's own options."""
    known = {field.name for field in dataclasses.fields(Config)} | set(OLD_NAMES)
    config = config_of({name: value for name, value in options.items() if name in known}, config_file)
    return config, {name: value for name, value in options.items() if name not in known}
