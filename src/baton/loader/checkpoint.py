"""What a checkpoint's files hold, read from their headers: names, types and shapes of tensors, without the tensors.

A .safetensors file is 8 bytes with the header's length, the header in JSON, and the numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from baton.core.errors import LoadError
from baton.loader.folder import beginning, read_json

_AGAIN = "download the model again"
_MOST_HEADER_BYTES = 100 * 2**20
# A part of a layer: the layer's list of them, its number there, and what of it.
_PART = re.compile(r"(.*\.\d+\..*)\.(\d+)\.(\D+)")
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint: its type in the format's words, such as BF16, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        digits = re.search(r"\d+", self.dtype)  # F8_E4M3 has 8 bits, BOOL too
        return math.prod(self.shape) * (int(digits[0]) if digits else 8) // 8


def shards(folder: Path, index: str, source: str) -> dict[str, list[str]]:
    """For each file, the tensors that the index says are in it. Raises LoadError if it is not an index."""
    of_tensor = read_json(folder, index, source).get("weight_map")
    if not isinstance(of_tensor, dict) or not of_tensor:
        raise LoadError(f"{source}: {index} has no weight_map: {_AGAIN}")
    names: dict[str, list[str]] = {}
    for name, file in of_tensor.items():
        if not isinstance(file, str) or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise LoadError(f"{source}: {index} names {str(file)[:80]!r}, which is no file there")
        names.setdefault(file, []).append(name)
    return names


def stored(folder: Path, files: dict[str, list[str]], source: str) -> dict[str, Stored]:
    """All tensors in these files; with each file, the names that it must have. Raises LoadError."""
    gone = sorted(file for file in files if not (folder / file).exists())
    if gone:
        raise LoadError(f"{source}: {few(gone)} of {len(files)} files of weights are missing: {_AGAIN}")
    tensors: dict[str, Stored] = {}
    for file, names in files.items():
        header = _header(folder / file, f"{source}: {file}")
        absent = [name for name in names if name not in header]
        if absent:
            raise LoadError(f"{source}: {file} lacks what the index says is in it, {few(absent)}: {_AGAIN}")
        tensors.update(header)
    return tensors


def _header(path: Path, called: str) -> dict[str, Stored]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            text = file.read(length if length <= min(size, _MOST_HEADER_BYTES) else 32)
    except OSError as error:
        raise LoadError(f"{called} cannot be read: {error.strerror}") from error
    if not size:
        raise LoadError(f"{called} is empty: {_AGAIN}")
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: Stored(one["dtype"], tuple(one["shape"])) for name, one in header.items()}
        end = 8 + length + max((one["data_offsets"][1] for one in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        # Checked only now, because a header may be as long as these bytes read as a number.
        wrong = beginning(head + text) or f"is cut off or no safetensors file, and could not be loaded: {_AGAIN}"
        raise LoadError(f"{called} {wrong}") from error
    if size < end:
        raise LoadError(f"{called} is cut off, {size:,} of {end:,} bytes: {_AGAIN}")
    return tensors


def uneven(tensors: Mapping[str, Stored]) -> list[str]:
    """Returns which parts of a layer (its experts) differ from their neighbours: missing ones, or other shapes."""
    parts: dict[str, dict[str, dict[str, Stored]]] = {}
    for name, tensor in tensors.items():
        match = _PART.fullmatch(name)
        if match:
            parts.setdefault(match[1], {}).setdefault(match[2], {})[match[3]] = tensor
    odd = []
    for layer, each in sorted(parts.items()):
        for kind in sorted(set().union(*each.values())):
            shapes = Counter(one[kind].shape for one in each.values() if kind in one)
            usual = shapes.most_common(1)[0][0]
            for number, one in each.items():
                if kind not in one:
                    odd.append(f"{layer}.{number}.{kind} is missing")
                elif one[kind].shape != usual:
                    odd.append(f"{layer}.{number}.{kind} is {list(one[kind].shape)} and others are {list(usual)}")
    return odd


def few(names: Sequence[str], most: int = 3) -> str:
    """The first of these names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
