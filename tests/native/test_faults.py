"""A failure behind the C entry points becomes a Python error: no C++ exception ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes import byref
from pathlib import Path

import pytest

from baton.native import library as native
from baton.native.library import FLOAT32
from baton.native.structs import Instruction, Layer, ProgramIR, Table, Visibility, Weight

library = native.library
pytestmark = pytest.mark.skipif(library is None, reason=native.describe())

OTHER_USER = 54_399
POOL = f"""
import os, resource
from baton.native.library import library
os.setuid({OTHER_USER})
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_NPROC, (THREADS, THREADS))
before = len(os.listdir("/proc/self/task"))
try:
    library.baton_pool_new(4)
    print("made")
except Exception as error:
    print(type(error).__name__, error)
print(len(os.listdir("/proc/self/task")) - before, library.baton_pool_new(1) is not None)
"""

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not Path("/proc/self/task").is_dir(),
    reason="only root can become a user whose processes are counted from none",
)


@needs_root
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_limit_of_threads_is_an_error_and_those_that_began_have_ended(threads: int) -> None:
    program = POOL.replace("THREADS", str(threads))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    first, last = done.stdout.splitlines()
    assert first.startswith("LoadError native threads cannot be started: ") and "--threads 1" in first
    assert (last, done.returncode, done.stderr) == ("0 True", 0, "")


@pytest.mark.parametrize("threads", [0, -1, -(2**31), 1025, 2**31 - 1])
def test_a_pool_of_no_possible_size_is_refused(threads: int) -> None:
    assert library is not None
    with pytest.raises(ValueError, match="refuse"):
        library.baton_pool_new(threads)


def test_a_program_of_an_impossible_length_is_refused() -> None:
    assert library is not None
    pool = library.baton_pool_new(1)
    for count in (-1, 2**60):
        with pytest.raises((ValueError, MemoryError)):
            library.baton_program_new(
                native.kernels(), pool, byref(ProgramIR()), (Instruction * 1)(), count, (Table * 1)(), 0,
                (Layer * 1)(), 0, (Visibility * 1)(), 0, None, 0,
            )  # fmt: skip
    library.baton_pool_free(pool)


def test_a_product_without_memory_is_an_error(kernels: int) -> None:
    assert library is not None
    place = bytes(4096)
    weight = Weight(FLOAT32, 1, 1, 64, None)
    with pytest.raises(MemoryError):
        library.baton_product(kernels, weight, place, 2**41, None, place)
