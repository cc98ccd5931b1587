"""What this process may use of the machine: memory, cores and threads, within control groups of both versions."""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
from pathlib import Path

import psutil

# In a control group's folder, version 2 and 1: limit, use, and the line of memory.stat with droppable memory.
_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)

_THREAD_SECONDS = 5.0  # how long a thread may take to end; one that has not reported by then never began


def free_memory_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Memory that this process may still take: the machine's free memory, or less if a control group has less.

    For both versions of control groups. File pages that were not used lately count as free, because the kernel drops
    them first.
    """
    left: list[int] = [psutil.virtual_memory().available]
    for folder in _control_groups(root, own, "memory"):
        for limit, used, droppable in _GROUP_FILES:
            with contextlib.suppress(OSError, ValueError, KeyError):  # no such group, or its limit is "max"
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                left.append(most - taken + int(stat[droppable]))
    return max(0, min(left))


def _control_groups(root: Path, own: Path, controller: str) -> list[Path]:
    """Folders of the control groups that limit this process, and their parents."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return [root]
    # Version 2 is hierarchy 0, without names of controllers.
    groups = [
        (root / controller if names else root, path)
        for _, names, path in lines
        if not names or controller in names.split(",")
    ]
    inside = [(base, [Path(path), *Path(path).parents]) for base, path in groups]
    return [base / str(path).lstrip("/") for base, paths in inside for path in paths]


def cores(
    root: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
    cpus: Path = Path("/sys/devices/system/cpu"),
) -> int:
    """How many cores this process may compute on, at least one.

    The cores that it may be scheduled on, where two threads of a core are one. Fewer if a control group has less time
    than they have together. Rounded down: threads wait for one another, and a group's time is taken from all of them.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    bounds = [float(len({_core_of(cpu, cpus) for cpu in usable}))]
    for folder in _control_groups(root, own, "cpu"):
        with contextlib.suppress(OSError, ValueError):  # no such group, or its time is "max"
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            bounds.append(quota / period)
        with contextlib.suppress(OSError, ValueError):  # version 1, where -1 means no limit
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            bounds.extend([quota / period] if quota > 0 else [])
    return max(1, int(min(bounds)))


def threads_that_start(count: int) -> int:
    """How many more threads this process can start, up to `count`. All have ended on return.

    Called before libraries start their threads, because some end the process if one cannot be started.
    """
    gate, ended = threading.Lock(), threading.Semaphore(0)

    def stay() -> None:
        with gate:
            pass
        ended.release()

    started = 0
    with gate, contextlib.suppress(RuntimeError, MemoryError):
        while started < count:
            # `Thread.start` would wait for ever for a thread that was made and could not begin.
            _thread.start_new_thread(stay, ())
            started += 1
    return sum(ended.acquire(timeout=_THREAD_SECONDS) for _ in range(started))


def _core_of(cpu: int, cpus: Path) -> str:
    """The same value for all threads of a core."""
    try:
        return (cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
