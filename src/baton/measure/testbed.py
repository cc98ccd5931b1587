"""The machine that trials are made on: what it is, and how fast it is at the moment."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from baton import __version__
from baton.core.clock import monotonic


def machine_speed() -> float:
    """How fast the machine is now: the geometric mean of what it reads (10 GB/s) and multiplies (100 GFLOP/s).

    It includes other processes' load and clocks that change from hour to hour, but nothing of baton's.
    """
    memory, square = torch.ones(2**24), torch.ones(512, 512)
    reads = statistics.median(_seconds(memory.sum) for _ in range(15))
    products = statistics.median(_seconds(lambda: square @ square) for _ in range(61))
    return math.sqrt((memory.nbytes / reads / 1e10) * (2 * 512**3 / products / 1e11))


def _seconds(work: Callable[[], object]) -> float:
    began = monotonic()
    work()
    return monotonic() - began


def about_machine() -> dict[str, Any]:
    versions = f"baton {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "processor": _processor(),
        "system": platform.system(),
        "versions": versions,
    }


def _processor() -> str:
    """Its name, if the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
