"""Quantised weights on disk: packed once, and mapped by the next start, which then reads no other numbers of them.

A file is a header, padded to whole pages, and the packed weights as they lie in memory. The header has checksums, for a
disk may lose what it was given, and powers of two of the weights' scales.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.core.errors import StorageFull
from baton.core.files import OWNER_ONLY, replacing

log = logging.getLogger("baton.model")

MOST_FILES = 8
"""Files in a folder; those that were not used for the longest time go."""
VERSION = 1
"""Of how weights are packed: of the layouts in source/kernels.h and of rounding. Raise it if they change."""
_END = ".packed"
_MAGIC = b"batonpk1"
_PIECE = 16 << 20
_MOST_HEADER = 64 << 20


@dataclass(frozen=True, slots=True)
class KeptWeights:
    """The file of one model's weights in one format. `key`: of the weights and the format, a part of a file's name.

    `most_bytes`: of all files in the folder.
    """

    folder: Path
    key: str
    most_bytes: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}-{VERSION}{_END}"

    def mapped(self, size: int) -> tuple[mmap.mmap, int, list[float]] | None:
        """Returns the file's memory, where in it the weights begin, and their powers; None if there is no sound file.

        `size`: bytes of the weights. A file that is damaged, or another one's, is removed.
        """
        try:
            with self.path.open("rb") as file:
                start, header = _header(file.read(16), file.read)
                there = os.fstat(file.fileno()).st_size
                if (header["key"], header["size"], there) != (self.key, size, start + size):
                    raise ValueError("it is another one's")
                memory = mmap.mmap(file.fileno(), start + size, access=mmap.ACCESS_COPY)
            if _sums(memory, start, size) != header["sums"]:
                raise ValueError("its numbers are damaged")
            os.utime(self.path)
            return memory, start, [float(power) for power in header["powers"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.remove(str(error))
            return None

    def remove(self, why: str) -> None:
        """Removes the file, and says why."""
        log.warning("packed weights are made anew, for %s cannot be used: %s", self.path, why)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def write(self, memory: memoryview, powers: Iterable[float]) -> None:
        """Keeps packed weights. A disk that is full, or no folder to write in, is told, and changes nothing else."""
        said = {"key": self.key, "size": len(memory), "sums": _sums(memory, 0, len(memory)), "powers": list(powers)}
        header = json.dumps(said).encode()
        start = -(-(16 + len(header)) // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self.folder.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
            self._make_room(start + len(memory))
            with replacing(self.path, mode=0o600) as file:
                file.write((_MAGIC + len(header).to_bytes(8, "little") + header).ljust(start, b"\0"))
                for at in range(0, len(memory), _PIECE):
                    file.write(memory[at : at + _PIECE])
            log.info(
                "packed weights (%.1f MiB) are kept for the next start: %s (--quantized-cache off keeps none)",
                len(memory) / 2**20,
                self.path,
            )
        except (OSError, StorageFull) as error:
            log.warning("packed weights are not kept for the next start (%s): %s", self.folder, error)

    def _make_room(self, size: int) -> None:
        """Removes the files that were not used for the longest time, as far as needed.

        Raises StorageFull if there is no room for so many bytes all the same; then no file was removed.
        """
        if size > self.most_bytes:
            raise StorageFull(f"{size:,} bytes are more than --quantized-cache-size {self.most_bytes:,}")
        others = [path for path in self.folder.glob(f"*{_END}") if path != self.path]
        used = {path: (at.st_mtime, at.st_size) for path in others if (at := path.stat())}
        total, going = sum(size for _, size in used.values()), list[Path]()
        for path in sorted(used, key=lambda one: used[one]):
            if len(used) - len(going) < MOST_FILES and total + size <= self.most_bytes:
                break
            going.append(path)
            total -= used[path][1]
        free = shutil.disk_usage(self.folder).free + sum(used[path][1] for path in going)
        if size > free / 2:
            raise StorageFull(f"{size:,} bytes are more than half of the {free:,} that are free on this disk")
        for path in going:
            path.unlink(missing_ok=True)
            log.info("packed weights of another model (%.1f MiB) had to go: %s", used[path][1] / 2**20, path)


def _header(begins: bytes, read: Callable[[int], bytes]) -> tuple[int, dict[str, Any]]:
    """Where the weights begin, and what the header says."""
    length = int.from_bytes(begins[8:], "little")
    if begins[:8] != _MAGIC or length > _MOST_HEADER:
        raise ValueError("it is no file of packed weights")
    said = json.loads(read(length))
    if not isinstance(said, dict):
        raise ValueError("its header is damaged")
    return -(-(16 + length) // mmap.PAGESIZE) * mmap.PAGESIZE, said


def _sums(memory: mmap.mmap | memoryview, start: int, size: int) -> list[int]:
    with memoryview(memory) as all_of_it, ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        pieces = range(start, start + size, _PIECE)
        return list(threads.map(lambda at: zlib.crc32(all_of_it[at : min(at + _PIECE, start + size)]), pieces))
