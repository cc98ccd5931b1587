"""Files that an operator names, read and written whole. Every failure is a SettingError that names the file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from baton.core.errors import SettingError, StorageFull

Name = str | Path
MOST_BYTES = 2**28  # of a JSON file: far beyond any report
PART = ".part"
"""The end of the name of a file that is not whole yet."""
OWNER_ONLY = 0o700
"""The mode of a folder that is nobody else's."""
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def user_cache() -> Path | None:
    """The folder for what can be made again, by the XDG base directory specification; None without a home."""
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "baton"
    return None


@contextlib.contextmanager
def named(what: str, path: Name, *, param: str) -> Iterator[None]:
    """Turns every error about a file into SettingError: "WHAT PATH: the reason".

    `what`: the flag that names it, or nothing.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeError:
        reason = "it is no text in UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # a path with a zero byte, or a parser's error
        reason = str(error)
    else:
        return
    raise SettingError(f"{what} {path}: {reason}".lstrip(), param=param)


def read_text(what: str, path: Name, *, param: str, most_bytes: int) -> str:
    """A file's text. Raises SettingError, also for more than `most_bytes`."""
    with named(what, path, param=param), open(path, "rb") as file:
        content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise ValueError(f"it is larger than {most_bytes:,} bytes")
        return content.decode()


def read_object(what: str, path: Name, *, param: str, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """A file's JSON object. Raises SettingError."""
    text = read_text(what, path, param=param, most_bytes=most_bytes)
    with named(what, path, param=param):
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        return value


def open_to_write(what: str, path: Name, *, param: str, append: bool = False) -> IO[str]:
    """Opens a text file to write. Raises SettingError, also for a pipe without a reader."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    with named(what, path, param=param):
        # Otherwise opening such a pipe waits for its reader for ever.
        file = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        if hasattr(os, "set_blocking"):
            os.set_blocking(file, True)
        return open(file, "w", encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file to write. It takes the place of `path` when it is complete and on the disk.

    `mode`: who may read it, before the process's umask. Raises OSError, and StorageFull if the disk has no room.
    """
    part = path.with_name(f"{path.name}{PART}")
    try:
        with room_on_disk(), open(part, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def room_on_disk() -> Iterator[None]:
    """Raises StorageFull for the errors of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull(f"the disk has no room: {error.strerror}") from None


def make_folder(what: str, path: Name, *, param: str, mode: int = 0o777) -> Path:
    """Makes a folder, and all above it, if it is not there. Raises SettingError, also for one that is read-only."""
    with named(what, path, param=param):
        Path(path).mkdir(mode=mode, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return Path(path)


def check_writable(what: str, path: Name, *, param: str) -> None:
    """Raises SettingError if the file cannot be written, and leaves its content. Called before long work."""
    open_to_write(what, path, param=param, append=True).close()


def write_text(what: str, path: Name, text: str, *, param: str) -> None:
    """Raises SettingError."""
    with named(what, path, param=param), open_to_write(what, path, param=param) as file:
        file.write(text)
