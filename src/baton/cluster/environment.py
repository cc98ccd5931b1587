"""What Ray reads from the environment, which must be there before it is imported."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import MutableMapping

from baton.core.errors import SettingError

_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to Ray's makers
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Ray's own 15 gives an engine a thirtieth of a core beside anything else that computes, the front included.
    "RAY_worker_niceness": "0",
    # How soon engines tell how busy they are, in seconds; Ray's own 10 s would make scaling slow.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}
_ALONE = {
    # Whoever reaches Ray's ports can run code. This, of all names, is what makes Ray listen on loopback alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # News of an iteration wait for one event loop instead of two; nothing of `RayEngine` holds it up.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}


def check_installed() -> None:
    """Raises SettingError if there is no Ray."""
    if importlib.util.find_spec("ray") is None:
        message = "--replicas needs Ray: pip install 'baton-llm[cluster]'"
        raise SettingError(message, param="replicas")


def prepare(environment: MutableMapping[str, str], *, alone: bool) -> None:
    """Sets what Ray is to read. `alone`: it is started here, for this machine, with a new token."""
    for name, value in _ALWAYS.items():
        environment.setdefault(name, value)
    if alone:
        environment.update(_ALONE)
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # An address in the environment would join that cluster.
        environment.pop("RAY_ADDRESS", None)
