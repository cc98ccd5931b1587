"""`baton top`: the live page in a terminal, from a running server's /live/data."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live

from baton.core.errors import BatonError, SettingError
from baton.observe.terminal import Seen, plain, screen

try:
    import termios
    import tty
except ImportError:  # not on Windows, where Ctrl-C ends it
    termios = tty = None  # type: ignore[assignment]

_ASK_SECONDS, _LATER_SECONDS, _TIMEOUT_SECONDS = 0.5, 2.0, 10.0
_DEFAULT_SIZE = (80, 24)


class TopError(BatonError):
    """The server cannot be reached, or does not send live data."""


def run_top(url: str, api_key: str | None, replica: str | None = None) -> None:
    """Draws until q or Ctrl-C; only once if stdout is not a terminal. Raises SettingError and TopError.

    `replica`: the engine, of a server with several.
    """
    base = _base(url)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    # A proxy of the environment cannot reach this machine's own address.
    here = httpx.URL(base).host in ("localhost", "127.0.0.1", "::1")
    console = Console(highlight=False)
    with httpx.Client(base_url=base, headers=headers, timeout=_TIMEOUT_SECONDS, trust_env=not here) as http:
        seen = Seen(replica or "")
        ask(http, seen)
        if not console.is_terminal:
            console.print(screen(seen, *_DEFAULT_SIZE), width=_DEFAULT_SIZE[0])
            return
        with contextlib.suppress(KeyboardInterrupt), _keys() as ended:
            watch(http, seen, console, ended)


def watch(http: httpx.Client, seen: Seen, console: Console, ended: Callable[[float], bool]) -> None:
    """`ended` waits so many seconds and returns whether to end."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        wait, trouble = 0.0, ""
        while not ended(wait):
            try:
                ask(http, seen)
                wait, trouble = _ASK_SECONDS, ""
            except TopError as error:
                wait, trouble = _LATER_SECONDS, error.message
            live.update(screen(seen, console.width, console.height, trouble), refresh=True)


def ask(http: httpx.Client, seen: Seen) -> None:
    """Gets what is new. Raises TopError."""
    try:
        while True:
            whose = {"replica": seen.replica} if seen.replica else {}
            response = http.get("/live/data", params={"serial": seen.serial, "time": seen.time, **whose})
            if response.status_code != 200:
                raise TopError(_refused(response))
            if seen.take(response.json()):
                return
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TopError(f"{http.base_url} cannot be reached: {plain(error) or type(error).__name__}") from None
    except (ValueError, KeyError, TypeError):
        raise TopError(f"{http.base_url} says what baton top does not understand: is it a baton server?") from None


def _refused(response: httpx.Response) -> str:
    hints = {401: "it needs its key: --api-key or BATON_API_KEY", 404: "it keeps no live view"}
    try:
        said = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = response.reason_phrase
    return f"the server answered {response.status_code}: {hints.get(response.status_code, plain(said))}"


def _base(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingError(f"{url}: not an address ({error})") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingError(f"{url}: not an address like http://127.0.0.1:8000")
    path = parsed.path.rstrip("/").removesuffix("/v1").removesuffix("/live")
    return str(parsed.copy_with(path=path or "/", query=None, fragment=None)).rstrip("/")


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Waits for q, which need not be followed by Enter."""
    if termios is None or not sys.stdin.isatty():
        yield _sleep
        return
    before: Any = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield _pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _pressed(seconds: float) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and sys.stdin.read(1) in ("q", "Q")
