"""Questions as they are typed or piped: one on a line, or one over several lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

with contextlib.suppress(ImportError):  # not everywhere; where it exists, input() has editing and a history in memory
    import readline  # noqa: F401

QUOTES = '"""'
Ask = Callable[[str], str]
"""Shows the prompt and returns the next line, without its end. Raises EOFError."""


def question(ask: Ask) -> str:
    """Reads a question. A line that ends in a backslash continues in the next; three quotes enclose several lines.

    Raises EOFError if there is no further one.
    """
    line = ask("> ")
    opened = line.lstrip().startswith(QUOTES)
    text = _quoted(line.lstrip().removeprefix(QUOTES), ask) if opened else _joined(line, ask)
    # A terminal passes bytes that are not UTF-8 as half characters, which cannot be sent.
    return text.encode(errors="replace").decode()


def _joined(line: str, ask: Ask) -> str:
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(ask("… "))
        except EOFError:
            break
    return "\n".join(lines)


def _quoted(line: str, ask: Ask) -> str:
    lines = [line]
    while not lines[-1].rstrip().endswith(QUOTES):
        try:
            lines.append(ask("… "))
        except EOFError:
            break
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


def from_terminal(prompt: str) -> str:
    return input(prompt)


def from_pipe(prompt: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")
