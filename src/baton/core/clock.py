"""Time as a value that is handed in, so that tests can move it by hand."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns seconds on a monotonic scale."""

monotonic: Clock = time.monotonic
