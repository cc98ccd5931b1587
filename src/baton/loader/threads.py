"""The threads that compute: torch's, and those of native steps."""

from __future__ import annotations

import os

import torch

from baton.core.errors import LoadError
from baton.core.host import threads_that_start

OTHER_THREADS = 20
"""The most threads besides those that compute or wait for a grammar: the engine's, its helpers', and a server's."""


def start_threads(count: int, beside: int) -> None:
    """Sets torch's threads and as many native ones. `beside`: threads that wait for a grammar.

    Raises LoadError if the process cannot start enough of them.
    """
    # Torch has a pool for each of the two threads that call it while loading and while serving.
    wanted = 3 * (count - 1) + OTHER_THREADS + beside
    if (can := threads_that_start(wanted)) < wanted:
        raise LoadError(
            f"an engine with {count} computing threads takes {wanted} threads, and this process can start {can}: "
            "raise its limit of processes (ulimit -u, or pids.max of its control group), or memory, or lower --threads"
        )
    torch.set_num_threads(count)
    # Texts are tokenised one by one; the tokenizer's own threads would only compete with those that compute.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
