"""What the verbs print for people on stderr: phases, sizes and errors."""

from __future__ import annotations

import contextlib
from typing import Any

from rich.console import Console


class Errors(Console):
    """A stderr that never stops a server: errors of a full disk or a closed reader are dropped."""

    def print(self, *args: Any, **kw: Any) -> None:
        with contextlib.suppress(OSError):
            super().print(*args, **kw)

    def on_broken_pipe(self) -> None:
        """Ends the process by itself otherwise."""
        self.quiet = True


errors = Errors(stderr=True, highlight=False, soft_wrap=True)


def tell_phase(phase: str, seconds: float) -> None:
    errors.print(f"  {phase:<12}{seconds:6.2f} s")


def tell_ready(seconds: float, url: str) -> None:
    """A server answers from now on, so many seconds after its start."""
    what = "chat page; /live; API under /v1; Ctrl-C ends"
    errors.print(f"[bold green]ready[/bold green] after {seconds:.1f} s: {url}  ({what})")


def tell_open() -> None:
    """Other machines reach the server, and no key is asked for."""
    errors.print("[yellow]anyone who can reach this address may use it[/yellow]: --api-key asks for a key")


def in_units(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
