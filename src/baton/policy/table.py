"""The policies that there are, by the names that `--policy` takes."""

from __future__ import annotations

from collections.abc import Callable

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
