"""Takes the pictures of the pages in docs/pictures, of the built-in model's server: `python scripts/pictures.py`.

Of the chat page; of the live page with "live", and then under a trace if one is named; of a page of `baton bench` with
"bench" and a model's folder, under a load where scheduling matters (docs/bench.md), on a quiet machine:

    python scripts/pictures.py live azure_llm_conv_2023.csv
    python scripts/pictures.py bench models/m135b

Needs playwright and a chromium on PATH. The moment is a race with the model: take them again if one shows nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
WIDE, PHONE = {"width": 1280, "height": 720}, {"width": 360, "height": 740}
MIDDLE_MS, DONE_MS = 330, 2500
LIVE, LIVE_MS = {"width": 1280, "height": 860}, 33_000  # the picture shows 30 seconds
LOAD = ["--queries", "2000", "--max-prompt", "512", "--max-answer", "200", "--mode", "timed"]
DRAWN = ["--prompt", "lognormal:150,0.8", "--answer", "lognormal:80,0.8", "--arrivals", "bursty:4,2"]
LIVE_PICTURES: dict[str, list[str]] = {
    "live": [],
    "live-run-to-completion": ["--policy", "run_to_completion"],
    "live-little-memory": ["--kv-memory", "5MiB", "--max-model-len", "1024"],
}
# Long prompts come while others are answered, at less than the machine can do.
BENCH = ["--policies", "run_to_completion,orca,baton", "--queries", "24", "--repeat", "3", "--max-model-len", "1024"]
BENCH += ["--prompt", "lognormal:600,0.3", "--max-prompt", "900", "--answer", "uniform:32,96"]
BENCH += ["--mode", "timed", "--arrivals", "poisson:1.2", "--goal-gap", "0.5", "--alone", "2"]


def main() -> None:
    with sync_playwright() as started:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        if sys.argv[1:2] == ["bench"]:
            take_bench(browser, sys.argv[2:])
        elif sys.argv[1:2] == ["live"]:
            for name, settings in LIVE_PICTURES.items():
                with serving(*settings) as url, asking(url, sys.argv[2:]):
                    take_live(browser, url, name)
        else:
            with serving() as url:
                take_all(browser, url)
        browser.close()


def take_bench(browser: Any, arguments: list[str]) -> None:
    """`arguments`: a model's folder; what follows it changes the workload."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "bench.html")
        subprocess.run([sys.executable, "-m", "baton", "bench", *BENCH, "--html", str(page), *arguments], check=True)
        tab = browser.new_page(viewport={"width": 1100, "height": 800})
        tab.goto(page.as_uri())
        tab.screenshot(path=PICTURES / "bench.png", full_page=True)


@contextmanager
def serving(*settings: str) -> Iterator[str]:
    command = [sys.executable, "-m", "baton", "serve", "--port", "0", *settings]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        yield next(match[0] for line in server.stderr if (match := re.search(r"http://[\d.:]+", line)))
    finally:
        server.terminate()
        server.wait()


@contextmanager
def asking(url: str, trace: list[str]) -> Iterator[None]:
    """`trace`: the file of queries, if one was named; three times as fast as they came."""
    workload = ["--workload", trace[0], "--factor", "3"] if trace else DRAWN
    load = subprocess.Popen([sys.executable, "-m", "baton", "load", url, *LOAD, *workload], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        load.terminate()
        load.wait()


def take_live(browser: Any, url: str, name: str) -> None:
    """The plain one in light, in dark and on a phone, the others in light."""
    page = live_page(browser, url, viewport=LIVE)
    page.wait_for_timeout(LIVE_MS)
    page.keyboard.press("Space")
    page.screenshot(path=PICTURES / f"{name}.png")
    if name != "live":
        return
    page = live_page(browser, url, viewport=LIVE, color_scheme="dark")
    page.wait_for_timeout(DONE_MS)
    box = page.locator("#rectangle").bounding_box()
    page.keyboard.press("Space")
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.5)
    page.screenshot(path=PICTURES / "live-dark.png")
    page = live_page(browser, url, viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.wait_for_timeout(DONE_MS)
    page.screenshot(path=PICTURES / "live-phone.png")


def live_page(browser: Any, url: str, **context: Any) -> Any:
    page = browser.new_context(**context).new_page()
    page.goto(f"{url}/live")
    page.get_by_role("button", name="30 s").click()
    return page


def take_all(browser: Any, url: str) -> None:
    page = opened(browser, url, viewport=WIDE)
    for question in (
        "What is 4821 + 377?",
        "Sort these numbers: 42, 17, 99, 23.",
        "Tell me a story about a fox and a lamp",
    ):
        ask(page, 0, question)
        page.wait_for_timeout(DONE_MS)
    page.screenshot(path=PICTURES / "chat-one.png")
    for scheme in ("light", "dark"):
        page = opened(browser, url, viewport=WIDE, color_scheme=scheme)
        page.get_by_role("button", name="Four questions at once").click()
        page.wait_for_timeout(DONE_MS)
        ask(page, 1, "Write a story about a boat", key="Control+Enter")
        page.wait_for_timeout(MIDDLE_MS)
        page.screenshot(path=PICTURES / f"chat-four-{scheme}.png")
    page.wait_for_timeout(DONE_MS)
    page.locator("#set").click()
    page.screenshot(path=PICTURES / "chat-settings-dark.png")
    page = opened(browser, url, viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.get_by_role("button", name="Four questions at once").click()
    page.wait_for_timeout(DONE_MS)
    page.get_by_role("button", name="Conversation 1", exact=True).click()
    page.wait_for_timeout(DONE_MS)
    page.screenshot(path=PICTURES / "chat-phone.png")


def opened(browser: Any, url: str, **context: Any) -> Any:
    page = browser.new_context(**context).new_page()
    page.goto(url)
    page.locator("#rows i").first.wait_for()
    return page


def ask(page: Any, pane: int, question: str, key: str = "Enter") -> None:
    page.get_by_label("Your question").nth(pane).fill(question)
    page.keyboard.press(key)


if __name__ == "__main__":
    main()
