"""Engines on a cluster that goes on without their front: they end when it is gone, however it went.

Ray ends an actor that is not detached with the process that has made it. So an actor of the front's tells engines that
it is there, and no message must.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError

NAMESPACE = "baton"

log = logging.getLogger("baton.cluster")


class _Here:
    """It only lives."""


@contextlib.contextmanager
def lease(name: str) -> Iterator[None]:
    """While this block, and this process, goes on, a lease of this name holds."""
    actor: Any = ray.remote(_Here).options(name=name, namespace=NAMESPACE, num_cpus=0, max_restarts=-1).remote()
    try:
        yield
    finally:
        with contextlib.suppress(RayError):
            ray.kill(actor)


def holds(name: str) -> bool:
    """Whether the lease is there. True as well while Ray cannot tell."""
    try:
        ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return False
    except Exception:
        log.warning("whether the front is there cannot be told", exc_info=True)
    return True
