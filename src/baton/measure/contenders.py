"""What is compared: policies and settings, by name. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baton.core.config import OLD_NAMES, Config, check_shaping, make_config
from baton.core.errors import SettingError
from baton.policy.port import traits
from baton.policy.table import POLICIES, policy_named

# Settings of the engine, not of the model as it was loaded.
VARIED = frozenset(
    {
        "policy",
        "max_batch_size",
        "kv_memory",
        "swap_memory",
        "shaping",
        "prefix_cache",
        "prefill_chunk",
        "max_stall_ms",
    }
)


@dataclass(frozen=True, slots=True)
class Contender:
    """A name, and the settings that differ from the common ones."""

    name: str
    changes: Mapping[str, str]


def contenders(policies: Sequence[str], varied: Sequence[str]) -> list[Contender]:
    """Each policy with each combination of `varied`, such as "max_batch_size=4,8". Raises SettingError."""
    combinations = [Contender(policy, {"policy": policy}) for policy in policies]
    for spec in varied:
        name, _, values = spec.replace("-", "_").partition("=")
        name = OLD_NAMES.get(name, name)
        if name not in VARIED or not values:
            known = ", ".join(sorted(VARIED - {"policy"}))
            raise SettingError(f"--vary {spec}: must be like max_batch_size=4,8; there is {known}", param="vary")
        combinations = [
            Contender(f"{one.name} {name}={value}", {**one.changes, name: value})
            for one in combinations
            for value in values.split(",")
        ]
    return combinations


def changed(config: Config, contender: Contender) -> Config:
    """The common settings with the contender's own. Raises SettingError."""
    checked = {name: getattr(make_config({name: value}), name) for name, value in contender.changes.items()}
    return dataclasses.replace(config, **checked)


def check_contenders(config: Config, some: Sequence[Contender]) -> None:
    """Raises SettingError for settings that no engine accepts, before a model is loaded."""
    for one in some:
        policy = one.changes["policy"]
        if policy not in POLICIES:
            raise SettingError(f"--policies {policy}: there is {', '.join(POLICIES)}", param="policies")
        check_shaping(changed(config, one), traits(policy_named(policy)))
