"""Parses server-sent events from bytes that come in pieces of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from baton.core.errors import BatonError

_MOST_BYTES = 16 * 2**20


def events(pieces: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """The name ("" if it has none) and the data of each event.

    Lines end in LF or CR LF; comments and other fields are skipped; an event at the end needs no empty line. Cut only
    at line ends, because a line may contain bytes that Python's splitlines takes for one.
    """
    name, data = "", list[str]()
    for line in _lines(pieces):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data" and line:
            data.append(value)
        elif field == "event":
            name = value
        elif not line:
            if data:
                yield name, "\n".join(data)
            name, data = "", []
    if data:
        yield name, "\n".join(data)


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > _MOST_BYTES:
            raise BatonError("the server sends a line without an end")
        for line in whole:
            yield line.removesuffix(b"\r").decode(errors="replace")
    if rest:
        yield rest.removesuffix(b"\r").decode(errors="replace")
