"""The live page in a browser, over a prepared timeline."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from baton.core.clock import monotonic
from baton.core.query import State
from baton.server.auth import Access
from observe.test_metrics import iteration
from observe.test_metrics import moved_at as moved
from server.listening import listening
from server.scripted import MODEL, ScriptedLoop, app_of
from server.watched import ROWS, SIGHT, beat, live_of

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")

expect, PATIENCE = playwright.expect, 20_000
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 360, "height": 740}
ROW, AXIS = 30, 18  # pixels, as the page draws them


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        expect.set_options(timeout=PATIENCE)
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


class Server:
    """What the page gets, from an engine that is at work whenever it asks, and what it asked for."""

    def __init__(self) -> None:
        self.live = live_of()
        self.asked: list[tuple[int, float]] = []

    def data(self, serial: int, time: float) -> bytes:
        self.asked.append((serial, time))
        beat(self.live._timeline, monotonic())
        return self.live.data(SIGHT, serial, time)


@pytest.fixture
def server() -> Server:
    return Server()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, server: Server, loop: ScriptedLoop) -> Iterator[Open]:
    """Opens the page. No page may go elsewhere, or break its own content policy."""
    problems: list[str] = []
    with ExitStack() as ends:

        def opened(url: str | None = None, *, viewport: dict[str, int] = WIDE, **more: Any) -> Any:
            home = url or ends.enter_context(listening(app_of(loop, live=server.data)))
            context = browser.new_context(viewport=viewport, **more)
            ends.callback(context.close)
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            page.on("request", lambda request: request.url.startswith(home) or problems.append(request.url))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text) if wrong(message) else None)
            page.goto(f"{home}/live")
            return page

        yield opened
    assert problems == []


def wrong(message: Any) -> bool:
    # The browser's own note of an answer that is not 200: a test that wants one says so.
    return message.type in ("error", "warning") and "Failed to load resource" not in message.text


def shown(page: Any) -> str:
    return str(page.evaluate("document.getElementById('rectangle').toDataURL()"))


def changes(page: Any, before: str) -> None:
    for _ in range(100):
        if shown(page) != before:
            return
        page.wait_for_timeout(50)
    pytest.fail("the picture stands still")


def colours_at(page: Any, row: int, left: float, right: float) -> set[tuple[int, ...]]:
    """Colours along the middle of a row, between two shares of the picture's width."""
    script = """([up, left, right]) => {
      const canvas = document.getElementById('rectangle'), copy = new OffscreenCanvas(canvas.width, canvas.height);
      const pen = copy.getContext('2d', { willReadFrequently: true });
      pen.drawImage(canvas, 0, 0);
      const width = Math.floor((right - left) * canvas.width), y = canvas.height - up;
      return [...pen.getImageData(left * canvas.width, y, width, 1).data];
    }"""
    up = AXIS + (ROWS - row) * ROW + ROW // 2 + 8
    data = page.evaluate(script, [up, left, right])
    return {tuple(data[at : at + 4]) for at in range(0, len(data), 4)}


def card(page: Any, title: str) -> Any:
    return page.locator(".card").filter(has_text=title)


def settled(page: Any) -> Any:
    expect(page.locator("#model")).to_have_text(MODEL)
    expect(page.locator("#rectangle")).to_have_attribute("aria-label", re.compile("tokens a second"))
    return page


def test_it_tells_the_bottleneck_and_the_figures(open_page: Open) -> None:
    page = settled(open_page())
    expect(page.locator("#sentence")).to_contain_text("25 % of what is computed is of no use, most of it finished row")
    expect(page.locator("#change")).to_have_text(
        "What would help: --policy baton computes no rows that are empty or done"
    )
    for title, words in (
        ("Idle computation", "most of it finished row"),
        ("Queue", "4 wait"),
        ("Memory of keys and values", "25 %"),
        ("Time to first token", "60 ms"),
        ("Rows", "3 of 8"),
    ):
        expect(card(page, title)).to_contain_text(words)
    expect(page.get_by_role("img", name="3 of 8 rows at work, 4 queries wait")).to_be_visible()


def test_rows_are_drawn_as_they_are(open_page: Open) -> None:
    page = settled(open_page())
    page.get_by_role("button", name="30 s").click()
    page.keyboard.press("Space")
    # Row 1 is one query's up to now; row 3 is hatched, in many shades; row 4 is empty; before all that is nothing.
    before = colours_at(page, 1, 0.1, 0.2)
    running = colours_at(page, 1, 0.75, 0.85)
    held = colours_at(page, 3, 0.85, 0.95)
    empty = colours_at(page, 4, 0.75, 0.95)
    assert len(running) == 1 and len(empty) == 1 and len(held) > 3 and running != empty and before != empty


def test_space_holds_the_picture_still_and_the_server_is_left_in_peace(open_page: Open, server: Server) -> None:
    page = settled(open_page())
    first = shown(page)
    changes(page, first)
    page.keyboard.press("Space")
    button = page.get_by_role("button", name="Go on")
    expect(button).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(300)
    held, asked = shown(page), len(server.asked)
    page.wait_for_timeout(1200)
    assert shown(page) == held and len(server.asked) == asked
    button.click()
    page.get_by_role("button", name="30 s").click()
    page.keyboard.press("Space")
    expect(button).to_be_visible()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    changes(page, held)
    for _ in range(50):
        if len(server.asked) > asked:
            break
        page.wait_for_timeout(100)
    assert len(server.asked) > asked and server.asked[-1][0] > 0, "it goes on from where it was"


def test_it_asks_nothing_while_nobody_looks(open_page: Open, server: Server) -> None:
    page = settled(open_page())
    hide = "(is) => { Object.defineProperty(document, 'hidden', { value: is, configurable: true });"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    page.wait_for_timeout(300)
    asked = len(server.asked)
    page.wait_for_timeout(1200)
    assert len(server.asked) == asked
    page.evaluate(hide, False)
    page.wait_for_timeout(700)
    assert len(server.asked) > asked


def test_what_happens_is_seen_at_once(open_page: Open, server: Server) -> None:
    page = settled(open_page())
    page.get_by_text("Rows as a table").click()
    rows = page.locator("#rows-now tbody tr")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("q-1")
    line = server.live._timeline
    line(moved(monotonic(), "q-77", State.READY, State.RUNNING))
    line(iteration(time=monotonic(), fed={"q-77": 1}))
    expect(rows).to_have_count(2)
    expect(rows.nth(1)).to_contain_text("q-77")
    assert server.asked[-1][1] > 0, "only what is new is asked for"


def test_a_query_is_told_by_mouse_and_by_keys(open_page: Open) -> None:
    page = settled(open_page())
    canvas, tip = page.locator("#rectangle"), page.locator("#tip")
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] - 60, "y": box["height"] - AXIS - ROWS * ROW + 10})
    expect(tip).to_contain_text("q-1")
    expect(tip).to_contain_text("in row 1, still running")
    canvas.hover(position={"x": 40, "y": box["height"] - AXIS - 10})
    expect(tip).to_be_hidden()
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    expect(tip).to_be_visible()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    expect(tip).to_contain_text("q-3")
    expect(tip).to_contain_text("finished")
    page.keyboard.press("ArrowUp")
    expect(tip).to_contain_text("swapped out, with what was computed")
    expect(page.locator("#said")).to_contain_text("q-2")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_another_start_of_the_server_is_begun_anew(open_page: Open, server: Server) -> None:
    page = settled(open_page())
    server.live = live_of()
    for _ in range(100):
        if (0, 0.0) in server.asked[1:]:
            break
        page.wait_for_timeout(100)
    assert (0, 0.0) in server.asked[1:]
    settled(page)


def test_the_key_is_asked_for(open_page: Open, server: Server, loop: ScriptedLoop) -> None:
    with listening(app_of(loop, live=server.data, access=Access(keys=("sesame",)))) as url:
        page = open_page(url)
        expect(page.locator("#notice")).to_have_text("This server needs its API key.")
        page.get_by_label("API key").fill("sesame")
        page.keyboard.press("Enter")
        settled(page)
        expect(page.locator("#notice")).to_be_hidden()


def test_a_server_that_is_gone(open_page: Open, server: Server, loop: ScriptedLoop) -> None:
    with listening(app_of(loop, live=server.data)) as url:
        page = settled(open_page(url))
    expect(page.locator("#notice")).to_contain_text("cannot be reached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(open_page: Open, scheme: str) -> None:
    page = settled(open_page(viewport=PHONE, has_touch=True, is_mobile=True, color_scheme=scheme))
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    canvas = page.locator("#rectangle")
    box = canvas.bounding_box()
    canvas.tap(position={"x": box["width"] - 20, "y": box["height"] - AXIS - ROWS * 22 + 8})
    expect(page.locator("#tip")).to_contain_text("q-1")
    unnamed = "[...document.querySelectorAll('button, input, canvas')].filter((e) => !e.textContent.trim()"
    unnamed += " && !e.getAttribute('aria-label') && !e.getAttribute('aria-hidden') && !e.labels?.length).length"
    assert page.evaluate(unnamed) == 0 and page.get_by_role("main").count() == 1


def test_the_pages_lead_to_each_other(open_page: Open) -> None:
    page = settled(open_page())
    page.get_by_role("link", name="Chat").click()
    expect(page.locator("#panes")).to_be_visible()
    page.get_by_role("link", name="live").first.click()
    settled(page)
