"""All policies, by the names that `--policy` takes."""

from __future__ import annotations

from collections.abc import Callable

from baton.core.errors import SettingError
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Policy
from baton.policy.priority import Priority
from baton.policy.run_to_completion import RunToCompletion
from baton.policy.slo import Slo

POLICIES: dict[str, Callable[[], Policy]] = {
    "baton": Baton,
    "orca": Orca,
    "priority": Priority,
    "run_to_completion": RunToCompletion,
    "slo": Slo,
}


def policy_named(name: str) -> Policy:
    """Returns a new policy. Raises SettingError if there is none of this name."""
    if name not in POLICIES:
        raise SettingError(f"--policy {name}: there is {', '.join(POLICIES)}", param="policy")
    return POLICIES[name]()
