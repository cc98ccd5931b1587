"""Runs a function in a fork of this process, which has imported all that it needs: an import of torch takes seconds."""

from __future__ import annotations

import faulthandler
import os
import traceback
from collections.abc import Callable, Iterable


def forked(body: Callable[[], Iterable[str]]) -> tuple[int, list[str]]:
    """The status with which a child ended that wrote the lines of `body`; negative if a signal ended it.

    An exception in the child is its last line, and its status is 1. Threads of this process are not in the child.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        faulthandler.disable()  # a signal may be what is tested
        status = 1
        with open(writing, "w", buffering=1) as out:
            try:
                for line in body():
                    print(line, file=out)
                status = 0
            except BaseException:
                print(traceback.format_exc(), file=out)
        os._exit(status)
    os.close(writing)
    with open(reading) as told:
        lines = told.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), lines
