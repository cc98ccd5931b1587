"""A folder of answers that one process leaves to the next: what was told of each, and its queries' segments.

Each answer is one file in the form of safetensors. A file takes its name's place when it is whole and on the disk. It
stays until it is dropped, so that a process that ends too early loses nothing. What cannot be read is set aside.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from baton.core.clock import Clock
from baton.core.errors import BatonError, SettingError, StorageFull
from baton.core.files import OWNER_ONLY, PART, make_folder, named, replacing
from baton.kv.parcel import BadParcel, Compile, Parcel, pack, unpack
from baton.kv.segment import KVSegment

try:
    import fcntl
except ImportError:  # there is none on Windows, where two servers must not be given one folder
    fcntl = None  # type: ignore[assignment]

VERSION = "1"
MOST_TRIES = 3
"""So many processes may end with an answer before it is set aside: it may be what ends them."""
_END, _ASIDE = ".safetensors", ".aside"
_MODE = 0o600
_TOLD = "told"


class BadFile(BatonError):
    """A file is damaged, or is of another version."""


class HandoverFolder:
    """At most `most_bytes` of files, which only their owner can read. One process at a time has the folder.

    `tell` is called with one line about each file that is set aside. Raises SettingError if the folder cannot be used.
    """

    def __init__(self, path: Path, most_bytes: int, clock: Clock, tell: Callable[[str], None]) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._clock = clock
        self._tell = tell
        make_folder("--handover", path, param="handover", mode=OWNER_ONLY)
        with named("--handover", path, param="handover"):
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, _MODE)
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise SettingError(f"--handover {path}: another process uses it", param="handover") from None
        with named("--handover", path, param="handover"):
            for part in path.glob(f"*{PART}"):
                part.unlink()
            self._secret = self._read_secret()

    def close(self) -> None:
        """Lets another process have the folder."""
        os.close(self._lock)

    def digest(self, text: str) -> str:
        """A digest under the folder's secret, the same in each process that has the folder."""
        return hashlib.blake2b(text.encode(errors="surrogatepass"), key=self._secret, digest_size=16).hexdigest()

    def put(self, name: str, told: bytes, segments: Sequence[KVSegment]) -> bool:
        """Keeps an answer under a name, in place of what has the name. Takes the segments, which it releases.

        Returns whether keys and values are kept; without room for them, all is to be computed again. Raises StorageFull
        and OSError.
        """
        try:
            now = self._clock()
            parcels = [pack(segment, now) for segment in segments]
            before = [path for path, _ in self._files(name)]
            wanted = sum(parcel.bytes for parcel in parcels) + len(told)
            room = self._room(wanted) + sum(path.stat().st_size for path in before)
            whole = wanted <= room
            if not whole:
                parcels = [parcel.without_parts() for parcel in parcels]
            if len(told) > room:
                raise StorageFull(f"the folder of --handover has {room:,} bytes left (--handover-bytes)")
            path = self._path / f"{name}.0{_END}"
            self._write(path, told, parcels)
        finally:
            for segment in segments:
                segment.release()
        for other in before:
            if other != path:
                other.unlink(missing_ok=True)
        return whole

    def names(self) -> list[str]:
        """The names of all answers, in the order in which they were kept."""
        files = sorted(self._files("*"), key=lambda one: one[0].stat().st_mtime_ns)
        return list(dict.fromkeys(path.name.partition(".")[0] for path, _ in files))

    def take(self, name: str, compile: Compile) -> tuple[bytes, list[KVSegment]]:
        """What was told of an answer, and its segments. Its file stays.

        Raises BadFile and BadParcel for what cannot be read, and what `compile` raises. `set_aside` is then to be
        called.
        """
        path, tries = self._files(name)[0]
        if tries >= MOST_TRIES:
            raise BadFile(f"{tries} processes ended before this answer did")
        # The name counts how often it was tried, and is changed before anything can go wrong.
        tried = path.with_name(f"{name}.{tries + 1}{_END}")
        os.replace(path, tried)
        told, parcels = _read(tried)
        now = self._clock()
        return told, [unpack(parcel, now, compile) for parcel in parcels]

    def drop(self, name: str) -> None:
        """The answer is not needed any more."""
        for path, _ in self._files(name):
            path.unlink(missing_ok=True)

    def set_aside(self, name: str, why: str) -> None:
        """Leaves a file that cannot be used to the operator. It is removed when room is needed."""
        for path, _ in self._files(name):
            os.replace(path, path.with_name(path.name + _ASIDE))
            self._tell(f"{path.name} in the folder of --handover is set aside: {why}")

    def _files(self, name: str) -> list[tuple[Path, int]]:
        """The files of a name with the number of their tries; the one that was written last comes first."""
        files = [(path, path.name.split(".")) for path in self._path.glob(f"{name}.*{_END}")]
        known = [(path, int(parts[1])) for path, parts in files if len(parts) == 3 and parts[1].isdecimal()]
        return sorted(known, key=lambda one: one[1])

    def _room(self, wanted: int) -> int:
        """Bytes that may still be written. If less than wanted, what was set aside is removed, the oldest first."""
        sizes = {path: path.stat() for path in self._path.iterdir()}
        room = self._most_bytes - sum(about.st_size for about in sizes.values())
        aside = sorted((path for path in sizes if path.name.endswith(_ASIDE)), key=lambda path: sizes[path].st_mtime)
        while room < wanted and aside:
            oldest = aside.pop(0)
            oldest.unlink(missing_ok=True)
            room += sizes[oldest].st_size
        return room

    def _write(self, path: Path, told: bytes, parcels: Sequence[Parcel]) -> None:
        parts = {f"{at}.{i}": part for at, parcel in enumerate(parcels) for i, part in enumerate(parcel.parts)}
        written = {"told": told.decode(), "parcels": [dict(parcel.header) for parcel in parcels]}
        arrays = {_TOLD: np.frombuffer(json.dumps(written).encode(), np.uint8), **parts}
        with replacing(path, mode=_MODE) as file:
            save_file(arrays, file.name, {"baton": VERSION, "digest": _digest(arrays)})
        if fcntl is not None:  # Windows opens no folders
            folder = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(folder)  # the file's new name
            finally:
                os.close(folder)

    def _read_secret(self) -> bytes:
        path = self._path / "secret"
        if not path.exists():
            with replacing(path, mode=_MODE) as file:
                file.write(secrets.token_bytes(32))
        return path.read_bytes()[:64]


def _digest(arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].nbytes} ".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[bytes, list[Parcel]]:
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            if about.get("baton") != VERSION:
                raise BadFile(f"it is of version {about.get('baton')}; this is version {VERSION}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(arrays) != about.get("digest"):
            raise BadFile("it is damaged: its bytes are not those that were written")
        written = json.loads(arrays[_TOLD].tobytes())
        return written["told"].encode(), list(_parcels(written["parcels"], arrays))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BadFile(f"it is damaged: {type(error).__name__}") from error


def _parcels(headers: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray[Any, Any]]) -> Iterator[Parcel]:
    for at, header in enumerate(headers):
        parts = [arrays[f"{at}.{i}"] for i in range(len(header["parts"]))]
        if not all(part.dtype == np.uint8 for part in parts):
            raise BadParcel("this is no parcel: its parts are no bytes")
        yield Parcel(header, parts)
