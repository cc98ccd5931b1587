"""Settings as variables of the environment and a TOML file give them: values by name, not yet checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Set

from baton.core.errors import SettingError
from baton.core.files import named, read_text

ENVIRONMENT_PREFIX = "BATON_"
# Variables of the process, not of an engine: read by native/library.py, hatch_build.py and compose.py.
NOT_SETTINGS = {"BATON_NATIVE", "BATON_NATIVE_LIBRARY", "BATON_NO_NATIVE", "BATON_FAULTS", "BATON_TEST_MODE"}
MOST_CONFIG_BYTES = 2**20


def from_environment(environment: Mapping[str, str], known: Set[str]) -> dict[str, object]:
    ours = {key: value for key, value in environment.items() if key.startswith(ENVIRONMENT_PREFIX)}
    settings = {key: value for key, value in ours.items() if key not in NOT_SETTINGS}
    named = {key: key[len(ENVIRONMENT_PREFIX) :].lower() for key in settings}
    unknown = sorted(key for key, name in named.items() if name not in known)
    if unknown:
        names = ", ".join(f"{named[key]} (environment variable {key})" for key in unknown)
        raise SettingError(f"unknown setting: {names}", param=named[unknown[0]])
    return {named[key]: value for key, value in settings.items()}


def from_file(file: str) -> dict[str, object]:
    text = read_text("--config", file, param="config", most_bytes=MOST_CONFIG_BYTES)
    with named("--config", file, param="config"):
        values = tomllib.loads(text)
    return {key.replace("-", "_"): value for key, value in values.items()}
