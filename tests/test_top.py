"""`baton top`: the live page in a terminal, from a prepared server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from rich.console import Console

from baton.cli.main import cli
from baton.core.clock import monotonic
from baton.core.errors import BatonError, SettingError
from baton.observe.terminal import Seen, screen
from baton.observe.top import TopError, watch
from baton.server.auth import Access
from baton.testing.clock import ManualClock
from server.listening import listening
from server.scripted import ScriptedLoop, app_of
from server.watched import SIGHT, beat, live_of

NOW = 1000.0


@pytest.fixture
def url() -> Iterator[str]:
    live = live_of()

    def data(serial: int, time: float) -> bytes:
        beat(live._timeline, monotonic())
        return live.data(SIGHT, serial, time)

    with listening(app_of(ScriptedLoop(), live=data)) as address:
        yield address


def told(*, max_rows: int = 4) -> dict[str, Any]:
    """A response at a fixed time."""
    clock = ManualClock(NOW)
    return dict(json.loads(live_of(clock, max_rows=max_rows).data(SIGHT, 0, 0.0)))


def drawn(data: dict[str, Any], width: int = 80, height: int = 24) -> list[str]:
    seen = Seen()
    assert seen.take(data)
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(screen(seen, width, height))
    return captured.get().rstrip("\n").split("\n")


def test_where_there_is_no_terminal_it_tells_once(url: str) -> None:
    done = CliRunner().invoke(cli, ["top", url])
    assert done.exit_code == 0, done.exception
    for words in ("lab/letters", "policy baton", "25 % of what is computed", "wait 4", "row 4", "waiting"):
        assert words in done.output
    assert "\x1b" not in done.output


def test_the_rectangle_is_drawn_in_80_columns_and_24_lines() -> None:
    lines = drawn(told())
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    rows = {line.split()[1]: line[9:] for line in lines if line.lstrip().startswith("row ")}
    middle = 50  # column of about 18 seconds ago
    assert set(rows) == {"1", "2", "3", "4"}
    assert rows["1"][:40].strip() == "" and set(rows["1"][-20:-1]) == {"█"}
    assert "◂" in rows["2"] and "░" in rows["3"][-8:] and "·" in rows["4"][middle:]
    assert "█" not in rows["4"]


def test_of_several_engines_it_names_the_others() -> None:
    seen = Seen()
    assert seen.take({**told(), "replica": "a", "replicas": ["a", "b"]})
    assert seen.replica == "a" and "engine a; --replica b" in screen(seen, 80, 24).plain


@pytest.mark.parametrize(("rows", "width", "height"), [(64, 80, 24), (200, 120, 40), (1, 80, 24), (8, 40, 12)])
def test_it_fits_any_terminal(rows: int, width: int, height: int) -> None:
    lines = drawn(told(max_rows=rows), width, height)
    assert max(map(len, lines)) <= width
    if width >= 80:
        assert len(lines) <= height
        assert any("rows more" in line for line in lines) == (rows > 20)


def test_what_a_server_says_cannot_command_the_terminal() -> None:
    data = told()
    data["model"] = data["diagnosis"]["sentence"] = "\x1b[2J\u009b31mx"
    assert not any(mark in line for line in drawn(data) for mark in "\x1b\u009b")


def test_what_is_new_is_added_and_another_server_begins_anew() -> None:
    seen, first = Seen(), told()
    assert seen.take(first) and seen.serial == first["serial"]
    count = len(seen.buckets)
    more = {**first, "stays": [], "buckets": {name: values[-1:] for name, values in first["buckets"].items()}}
    assert seen.take(more) and len(seen.buckets) == count and len(seen.intervals) == 4
    later = {**more, "now": first["now"] + 1000, "buckets": {name: [] for name in first["buckets"]}}
    assert (
        seen.take(later)
        and not seen.buckets
        and set(interval["query"] for interval in seen.intervals.values()) == {"q-1"}
    )
    assert not seen.take({**first, "run": "another"}) and seen.serial == 0


def test_it_goes_on_while_the_server_is_away_and_ends_when_asked() -> None:
    answers: list[httpx.Response | Exception]
    answers = [httpx.Response(200, json=told()), httpx.ConnectError("gone"), httpx.Response(200, json=told())]
    waits: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        reply = answers.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def ended(seconds: float) -> bool:
        waits.append(seconds)
        return not answers

    console = Console(width=80, height=24, force_terminal=True, file=None, record=True, quiet=False)
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x") as http, console.capture() as shown:
        seen = Seen()
        # The third answer is another server's, so everything must be asked for again.
        answers.append(httpx.Response(200, json=told()))
        watch(http, seen, console, ended)
    assert "cannot be reached: gone" in shown.get() and "lab/letters" in shown.get()
    assert waits[0] == 0 and max(waits) > 1 and not answers


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["ftp://x"], SettingError, "not an address like"),
        (["nowhere"], SettingError, "not an address like"),
        (["http://127.0.0.1:9"], TopError, "cannot be reached"),
    ],
)
def test_wrong_addresses(arguments: list[str], kind: type[BatonError], words: str) -> None:
    done = CliRunner().invoke(cli, ["top", *arguments])
    assert isinstance(done.exception, kind) and words in done.exception.message


def test_a_key_is_needed_and_sent() -> None:
    live = live_of()
    app = app_of(
        ScriptedLoop(),
        live=lambda serial, time: live.data(SIGHT, serial, time),
        access=Access(keys=("sesame",)),
    )
    with listening(app) as url:
        refused = CliRunner().invoke(cli, ["top", url])
        assert isinstance(refused.exception, TopError) and "BATON_API_KEY" in refused.exception.message
        taken = CliRunner().invoke(cli, ["top", f"{url}/v1/"], env={"BATON_API_KEY": "sesame"})
        assert taken.exit_code == 0 and "lab/letters" in taken.output


def test_a_server_that_is_none_of_ours() -> None:
    with listening(app_of(ScriptedLoop())) as url:
        done = CliRunner().invoke(cli, ["top", url])
    assert isinstance(done.exception, TopError) and "keeps no live view" in done.exception.message
