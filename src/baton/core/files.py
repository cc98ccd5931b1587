"""Files that an operator names, read and written whole: what goes wrong is one SettingError that names the file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from baton.core.errors import SettingError

Name = str | Path
MOST_BYTES = 2**28  # of what is read as JSON: far beyond any report


@contextlib.contextmanager
def named(what: str, path: Name, *, param: str) -> Iterator[None]:
    """Has all that can be wrong with a file raise SettingError: "WHAT PATH: the reason".

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
    except ValueError as error:  # a path with a zero byte; a parser's complaint
        reason = str(error)
    else:
        return
    raise SettingError(f"{what} {path}: {reason}".lstrip(), param=param)


def read_text(what: str, path: Name, *, param: str, most_bytes: int) -> str:
    """A file's text. Raises SettingError, for more than `most_bytes`, too."""
    with named(what, path, param=param), open(path, "rb") as file:
        found = file.read(most_bytes + 1)
        if len(found) > most_bytes:
            raise ValueError(f"it is larger than {most_bytes:,} bytes")
        return found.decode()


def read_object(what: str, path: Name, *, param: str, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """A file's JSON object. Raises SettingError."""
    text = read_text(what, path, param=param, most_bytes=most_bytes)
    with named(what, path, param=param):
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        return found


def open_to_write(what: str, path: Name, *, param: str, append: bool = False) -> IO[str]:
    """A text file to write. Raises SettingError, for a pipe that nobody reads, too."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    with named(what, path, param=param):
        # Otherwise opening such a pipe waits for its reader, for ever.
        file = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        if hasattr(os, "set_blocking"):
            os.set_blocking(file, True)
        return open(file, "w", encoding="utf-8")


def check_writable(what: str, path: Name, *, param: str) -> None:
    """Raises SettingError if the file could not be written; leaves what is in it. Asked before long work."""
    open_to_write(what, path, param=param, append=True).close()


def write_text(what: str, path: Name, text: str, *, param: str) -> None:
    """Raises SettingError."""
    with named(what, path, param=param), open_to_write(what, path, param=param) as file:
        file.write(text)
