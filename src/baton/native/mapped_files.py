"""Which memory of this process is a file's, so that its pages may be given back and are read again when needed."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")


class MappedFiles:
    """The files that are mapped now. Where the system does not tell, as outside Linux, there are none."""

    def __init__(self) -> None:
        self._regions: list[tuple[int, int]] = []
        try:
            lines = _MAPS.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            # "7f00-7f10 r--p 00000000 08:01 1234 /path": memory that is no file's has inode 0.
            region, _, _, _, inode = line.split(maxsplit=5)[:5]
            if inode != "0":
                start, stop = (int(part, 16) for part in region.split("-"))
                self._regions.append((start, stop))

    def around(self, tensor: Tensor) -> tuple[int, int] | None:
        """Where the mapped part of a file begins and ends in which a tensor begins; None if it is in none."""
        at = bisect_right(self._regions, (tensor.data_ptr(), 1 << 64)) - 1
        inside = at >= 0 and self._regions[at][0] <= tensor.data_ptr() < self._regions[at][1]
        return self._regions[at] if inside else None

    def hold(self, tensor: Tensor) -> bool:
        """Whether all of a tensor lies in a mapped file."""
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        at = bisect_right(self._regions, (first, 1 << 64)) - 1
        while at >= 0 and at < len(self._regions) and self._regions[at][0] <= first < self._regions[at][1]:
            if last <= self._regions[at][1]:
                return True
            first, at = self._regions[at][1], at + 1
        return False
