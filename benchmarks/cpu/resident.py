"""How much memory of the machine this process holds, in bytes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import psutil

PEAK = Path("/proc/self/clear_refs")
"""Linux: writing here resets the high-water mark. Other systems have none, and `peak` is `now`."""


def settled() -> int:
    """Resident bytes when all that was let go is given back to the machine."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return now()


def now() -> int:
    return psutil.Process().memory_info().rss


def reset_peak() -> None:
    """Resets the high-water mark, if the kernel keeps one."""
    if PEAK.exists():
        PEAK.write_text("5")


def peak() -> int:
    if not PEAK.exists():
        return now()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
