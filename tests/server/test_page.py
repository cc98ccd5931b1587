"""The chat page in a browser: over the scripted engine, which holds and releases answers, and once for real."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

import baton.server.app
from baton import LLM
from baton.core.errors import InvalidValue, QueueFull, Unsupported
from baton.server.app import PAGE_FILES, PAGE_HEADERS, create_app
from baton.server.auth import Access
from server.listening import listening
from server.scripted import MODEL, Letters, ScriptedLoop, app_of

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")

expect, PATIENCE = playwright.expect, 20
expect.set_options(timeout=1000 * PATIENCE)
VENDORED = (Path(baton.server.app.__file__).parent / "page" / "vendor" / "README.md").read_text()
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "extensions")
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


@dataclass
class Seen:
    """What a page did that no page of ours may do."""

    home: str
    problems: list[str] = field(default_factory=list)
    failures: int = 0

    def watch(self, page: Any) -> Any:
        page.on("request", lambda request: request.url.startswith((self.home, "blob:")) or self._add(request.url))
        page.on("pageerror", lambda error: self._add(str(error)))
        page.on("console", lambda message: self._hear(message) if message.type in ("error", "warning") else None)
        return page

    def _hear(self, message: Any) -> None:
        # The browser's own note of an answer that is not 200: a test that wants one says so.
        if "Failed to load resource" in message.text:
            self.failures += 1
        else:
            self._add(message.text)

    def _add(self, text: str) -> None:
        self.problems.append(text)


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, base_url: str) -> Iterator[Open]:
    """Opens the chat page, by itself at `base_url`. No page may go elsewhere, or break its own content policy."""
    seen: list[Seen] = []
    with ExitStack() as ends:

        def opened(url: str = base_url, *, viewport: dict[str, int] = WIDE, **more: Any) -> Any:
            context = browser.new_context(viewport=viewport, reduced_motion="reduce", **more)
            ends.callback(context.close)
            context.set_default_timeout(1000 * PATIENCE)
            seen.append(Seen(url))
            page = seen[-1].watch(context.new_page())
            page.goto(url)
            return page

        yield opened
    assert [problem for one in seen for problem in one.problems] == []


@pytest.fixture
def page(open_page: Open) -> Any:
    opened = open_page()
    expect(opened.locator("#model")).to_have_text(MODEL)
    return opened


def pane(page: Any, number: int = 1) -> Any:
    return page.get_by_role("region", name=f"Conversation {number}")


def ask(place: Any, text: str) -> None:
    place.get_by_label("Your question").fill(text)
    place.get_by_role("button", name="Send").click()


def answer(place: Any) -> Any:
    return place.locator(".text").last


def facts(place: Any) -> Any:
    return place.locator(".facts").last


def wrong(place: Any) -> Any:
    return place.locator(".wrong").last


def told(query: Any) -> str:
    """The prompt as the scripted tokenizer wrote it, a letter a token."""
    return "".join(map(chr, query.prompt))


# One conversation


def test_text_appears_piece_by_piece_and_ends_with_what_it_took(page: Any, loop: ScriptedLoop) -> None:
    loop.held = True
    ask(pane(page), "hi")
    assert loop.came.wait(PATIENCE)
    loop.say("one ")
    expect(answer(pane(page))).to_have_text("one")
    loop.say("two ")
    expect(answer(pane(page))).to_have_text("one two")
    expect(pane(page).get_by_role("button", name="Stop")).to_be_visible()
    loop.release()
    expect(answer(pane(page))).to_have_text("one two hello")
    expect(facts(pane(page))).to_contain_text("5 tokens")
    for words in ("first after", "waited 500 ms", "25.0 % idle"):
        expect(facts(pane(page))).to_contain_text(words)
    expect(pane(page).get_by_role("button", name="Send")).to_be_visible()


def test_what_was_said_is_sent_again(page: Any, loop: ScriptedLoop) -> None:
    ask(pane(page), "hi")
    expect(facts(pane(page))).to_be_visible()
    ask(pane(page), "more")
    expect(pane(page).locator(".facts")).to_have_count(2)
    assert [told(query) for query in loop.queries] == ["<user>hi", "<user>hi<assistant>hello<user>more"]
    pane(page).get_by_role("button", name="Clear").click()
    ask(pane(page), "new")
    expect(facts(pane(page))).to_be_visible()
    assert told(loop.queries[-1]) == "<user>new"


def test_stop_ends_the_query_and_keeps_what_came(page: Any, loop: ScriptedLoop) -> None:
    loop.held, loop.opening = True, "so far"
    ask(pane(page), "hi")
    expect(answer(pane(page))).to_have_text("so far")
    pane(page).get_by_role("button", name="Stop").click()
    expect(facts(pane(page))).to_contain_text("stopped")
    assert loop.cancels.wait(PATIENCE)
    assert loop.cancelled == [loop.queries[0].id]
    expect(answer(pane(page))).to_have_text("so far")


def test_the_last_question_is_asked_again_or_edited(page: Any, loop: ScriptedLoop) -> None:
    for text in ("a", "b"):
        ask(pane(page), text)
        expect(answer(pane(page))).to_have_text("hello")
        expect(pane(page).get_by_role("button", name="Send")).to_be_visible()
    loop.answer = "bye"
    pane(page).get_by_role("button", name="Try again").click()
    expect(answer(pane(page))).to_have_text("bye")
    assert told(loop.queries[-1]) == told(loop.queries[-2]) == "<user>a<assistant>hello<user>b"
    pane(page).get_by_role("button", name="Edit").click()
    expect(pane(page).get_by_label("Your question")).to_have_value("b")
    expect(pane(page).locator(".exchange")).to_have_count(1)


def test_an_answer_is_copied(open_page: Open) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    ask(pane(page), "hi")
    pane(page).get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "hello"


def test_markdown_is_shown_and_html_is_text(page: Any, loop: ScriptedLoop) -> None:
    loop.held = True
    ask(pane(page), "<b>hi</b>")
    assert loop.came.wait(PATIENCE)
    loop.say(
        "# Head\nof **bold** and `code`\n\n", "1. one\n   - deep\n2. two\n", "```py\nx = '<i>'\n", "\n# no head\n```\n"
    )
    loop.say("<img src=x onerror=alert(1)>\n<script>alert(2)</script> 2 * 3 * 4 **open\n")
    shown = answer(pane(page))
    expect(shown.locator("p").last).to_have_text(
        "<img src=x onerror=alert(1)><script>alert(2)</script> 2 * 3 * 4 **open"
    )
    expect(shown.locator("h1")).to_have_text(["Head"])
    expect(shown.locator("strong")).to_have_text(["bold"])
    expect(shown.locator("p code")).to_have_text(["code"])
    expect(shown.locator("ol > li")).to_contain_text(["one", "two"])
    expect(shown.locator("ol ul li")).to_have_text(["deep"])
    assert shown.locator("pre code").inner_text().rstrip() == "x = '<i>'\n\n# no head"
    expect(pane(page).locator(".mine")).to_have_text("<b>hi</b>")
    assert page.locator("img[src=x], .log script, .mine b").count() == 0
    loop.release()
    expect(facts(pane(page))).to_be_visible()


MARKDOWN = """
[good](https://example.org) [bad](javascript:alert(1)) ![pic](https://example.org/p.png)

| city | degrees |
| --- | ---: |
| Rome | 31 |

It is $a_1 * b_2 * c$ and \\(x_i^2\\), for $5 or $6.

```
code
```
"""


def test_links_tables_and_formulas(loop: ScriptedLoop, browser: Any) -> None:
    loop.answer, loop.context = MARKDOWN, 2000
    with listening(app_of(loop)) as address, ExitStack() as after:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        after.callback(context.close)
        seen, page = Seen(address), context.new_page()
        seen.watch(page).goto(address)
        check_markdown(page)
        assert seen.problems == []


def check_markdown(page: Any) -> None:
    ask(pane(page), "hi")
    expect(facts(pane(page))).to_contain_text("of 2000")
    shown = answer(pane(page))
    addresses = shown.locator("a").evaluate_all("all => all.map(a => [a.getAttribute('href'), a.target, a.rel])")
    apart = ["_blank", "noopener noreferrer nofollow"]
    assert addresses == [["https://example.org", *apart], [None, *apart], ["https://example.org/p.png", *apart]]
    expect(shown.locator("th")).to_have_text(["city", "degrees"])
    expect(shown.locator("td").last).to_have_attribute("align", "right")
    expect(shown.locator(".formula")).to_have_text(["$a_1 * b_2 * c$", "\\(x_i^2\\)"])
    shown.get_by_role("button", name="Copy this code").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "code\n"
    assert page.locator(".log img").count() == 0


def test_thinking_is_folded(page: Any, loop: ScriptedLoop) -> None:
    loop.tokenizer.template, loop.answer = "{{ messages }} </think>", "<think>hm **so**</think>hello"
    ask(pane(page), "hi")
    expect(answer(pane(page))).to_have_text("hello")
    thought = pane(page).locator(".thought")
    expect(thought.locator(".text")).to_be_hidden()
    thought.locator("summary").click()
    expect(thought.locator("strong")).to_have_text(["so"])
    expect(facts(pane(page)).get_by_title("thought before")).to_contain_text("for thinking")
    ask(pane(page), "ho")
    expect(pane(page).locator(".facts")).to_have_count(2)  # the second was asked and is answered
    assert told(loop.queries[-1]) == "<user>hi<assistant>hello<user>ho", (
        "what it thought is no part of the conversation"
    )


def test_each_fact_is_explained(page: Any) -> None:
    ask(pane(page), "hi")
    expect(facts(pane(page))).to_be_visible()
    titles = facts(pane(page)).locator("span").evaluate_all("all => all.map(one => one.title)")
    assert len(titles) > 4 and all(titles)
    assert page.locator("#live [title]").count() == 4


# Several conversations


def test_several_conversations_are_answered_at_the_same_time(page: Any, loop: ScriptedLoop) -> None:
    loop.held = True
    for number, text in enumerate(("a", "b", "c"), 1):
        if number > 1:
            page.get_by_role("button", name="+ Pane").click()
        ask(pane(page, number), text)
        expect(pane(page, number).get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator("#occupied")).to_have_text("3/8")
    assert [told(query) for query, _ in loop.live.values()] == ["<user>a", "<user>b", "<user>c"]
    pane(page, 2).get_by_role("button", name="Stop").click()
    expect(facts(pane(page, 2))).to_contain_text("stopped")
    assert loop.cancels.wait(PATIENCE)
    loop.release()
    for number in (1, 3):
        expect(answer(pane(page, number))).to_have_text("hello")
    assert loop.cancelled == [loop.queries[1].id]


def test_all_are_asked_at_once_and_those_that_answer_are_left_alone(page: Any, loop: ScriptedLoop) -> None:
    page.get_by_role("button", name="+ Pane").click()
    page.get_by_role("button", name="+ Pane").click()
    loop.held = True
    ask(pane(page, 3), "x")
    expect(pane(page, 3).get_by_role("button", name="Stop")).to_be_visible()
    pane(page, 1).get_by_label("Your question").fill("all")
    pane(page, 1).get_by_role("button", name="Ask all").click()
    expect(page.get_by_text("Asked 2 of 3: the others are still answering.")).to_be_visible()
    expect(page.locator("#occupied")).to_have_text("3/8")
    loop.release()
    for number in (1, 2, 3):
        expect(facts(pane(page, number))).to_be_visible()
    assert sorted(told(query) for query in loop.queries) == ["<user>all", "<user>all", "<user>x"]


def test_no_more_panes_than_a_browser_has_connections(page: Any, loop: ScriptedLoop) -> None:
    for _ in range(4):
        page.get_by_role("button", name="+ Pane").click()
    expect(page.get_by_role("button", name="+ Pane")).to_be_disabled()
    loop.held = True
    pane(page, 5).get_by_label("Your question").fill("all")
    page.keyboard.press("Control+Enter")
    # One connection is left for this.
    expect(page.locator("#occupied")).to_have_text("5/8")
    pane(page, 4).get_by_role("button", name="Close").click()
    assert loop.cancels.wait(PATIENCE)
    expect(page.locator(".pane")).to_have_count(4)
    loop.release()
    for number in range(1, 5):
        expect(answer(pane(page, number))).to_have_text("hello")


def test_four_questions_at_once(page: Any, loop: ScriptedLoop) -> None:
    page.get_by_role("button", name="Four questions at once").click()
    for number in range(1, 5):
        expect(answer(pane(page, number))).to_have_text("hello")
    assert len({told(query) for query in loop.queries}) == 4


def test_a_reload_keeps_the_conversations(page: Any, loop: ScriptedLoop) -> None:
    ask(pane(page), "hi")
    expect(facts(pane(page))).to_be_visible()
    page.get_by_role("button", name="+ Pane").click()
    loop.held, loop.opening = True, "half"
    ask(pane(page, 2), "yo")
    expect(answer(pane(page, 2))).to_have_text("half")
    pane(page, 1).get_by_label("Your question").fill("not yet sent")
    page.reload()
    assert loop.cancels.wait(PATIENCE)
    expect(answer(pane(page, 1))).to_have_text("hello")
    expect(facts(pane(page, 1))).to_contain_text("5 tokens")
    expect(answer(pane(page, 2))).to_have_text("half")
    expect(facts(pane(page, 2))).to_have_text("stopped")
    expect(pane(page, 1).get_by_label("Your question")).to_have_value("not yet sent")
    loop.held, loop.opening = False, ""
    ask(pane(page, 1), "on")
    expect(pane(page, 1).locator(".facts")).to_have_count(2)
    assert told(loop.queries[-1]) == "<user>hi<assistant>hello<user>on"
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_role("button", name="Forget all").click()
    page.reload()
    expect(page.locator(".pane")).to_have_count(1)
    expect(page.locator(".exchange")).to_have_count(0)


# Settings


def set_all(page: Any, **values: str) -> None:
    for name, value in values.items():
        page.locator(f"#settings [name={name}]").fill(value)
    page.get_by_role("button", name="Done").click()


def test_settings_reach_the_request(page: Any, loop: ScriptedLoop) -> None:
    page.get_by_role("button", name="Settings").first.click()
    numbers = {"top_p": 0.9, "top_k": 7, "min_p": 0.05, "seed": 11, "max_tokens": 3, "presence_penalty": 0.5}
    numbers |= {"temperature": 0.7, "frequency_penalty": -0.5, "repetition_penalty": 1.2}
    texts = {"system": "be", "stop": "END\n\\n\\n"}
    set_all(page, **texts, **{name: str(value) for name, value in numbers.items()})
    page.reload()
    ask(pane(page), "hi")
    expect(facts(pane(page))).to_contain_text("cut at the token limit")
    expect(answer(pane(page))).to_have_text("hel")
    (query,) = loop.queries
    assert told(query) == "<system>be<user>hi"
    assert {name: getattr(query.params, name) for name in numbers} == numbers
    assert query.params.stop == ("END", "\n\n")


def test_a_pane_may_have_settings_of_its_own(page: Any, loop: ScriptedLoop) -> None:
    page.get_by_role("button", name="+ Pane").click()
    page.get_by_role("button", name="Settings").first.click()
    set_all(page, seed="1", top_k="5")
    pane(page, 2).get_by_role("button", name="Settings").click()
    expect(page.locator("#settings [name=seed]")).to_have_attribute("placeholder", "1")
    expect(page.locator("#key")).to_be_hidden()
    set_all(page, seed="2", temperature="0.5")
    expect(pane(page, 2).locator(".own")).to_have_text("temperature 0.5 · seed 2")
    pane(page, 1).get_by_label("Your question").fill("hi")
    page.keyboard.press("Control+Enter")
    for number in (1, 2):
        expect(answer(pane(page, number))).to_have_text("hello")
    settings = sorted((query.seed, query.params.temperature, query.params.top_k) for query in loop.queries)
    assert settings == [(1, 1.0, 5), (2, 0.5, 5)]


def test_by_itself_the_page_asks_as_any_client_does(loop: ScriptedLoop, browser: Any) -> None:
    loop.defaults = {"temperature": 0.25}
    with listening(app_of(loop)) as address:
        page = browser.new_page()
        page.goto(address)
        ask(pane(page), "hi")
        expect(facts(pane(page))).to_be_visible()
        page.get_by_role("button", name="Settings").first.click()
        expect(page.locator("#settings [name=temperature]")).to_have_attribute("placeholder", "0.25")
        set_all(page, temperature="0")
        ask(pane(page), "ho")
        expect(pane(page).locator(".facts")).to_have_count(2)
        page.close()
    assert [query.params.temperature for query in loop.queries] == [0.25, 0]


# What goes wrong


def test_a_full_queue_says_when_to_come_back(page: Any, loop: ScriptedLoop) -> None:
    loop.refuse = QueueFull("256 queries are waiting")
    ask(pane(page), "hi")
    expect(wrong(pane(page))).to_have_text("Too many questions are waiting. Try again in 1 s.")
    loop.refuse = None
    pane(page).get_by_role("button", name="Try again").click()
    expect(answer(pane(page))).to_have_text("hello")
    assert pane(page).locator(".wrong").count() == 0


def test_what_is_refused_is_said_with_its_reason(page: Any, loop: ScriptedLoop) -> None:
    loop.refuse = InvalidValue("top_k is 5000, the limit is 7", param="top_k")
    ask(pane(page), "hi")
    expect(wrong(pane(page))).to_have_text("The server refused this: top_k is 5000, the limit is 7.")


def test_an_error_in_the_middle_keeps_what_came(page: Any, loop: ScriptedLoop) -> None:
    loop.held, loop.opening = True, "he"
    ask(pane(page), "hi")
    expect(answer(pane(page))).to_have_text("he")
    loop.fail_after = 0
    loop.release()
    expect(wrong(pane(page))).to_contain_text("The server failed on this question")
    expect(answer(pane(page))).to_have_text("he")


def test_a_server_that_is_gone_and_back(open_page: Open, loop: ScriptedLoop) -> None:
    with ExitStack() as server:
        page = open_page(server.enter_context(listening(app_of(loop))))
        expect(page.locator("#model")).to_have_text(MODEL)
        loop.held, loop.opening = True, "half"
        ask(pane(page), "hi")
        expect(answer(pane(page))).to_have_text("half")
    expect(wrong(pane(page))).to_be_visible()
    pane(page).get_by_role("button", name="Try again").click()
    expect(wrong(pane(page))).to_have_text("The server cannot be reached. Is it running? Then try again.")
    expect(page.locator("#notice")).to_contain_text("cannot be reached")


def test_the_key_is_asked_for_once_and_the_question_goes_on(open_page: Open, loop: ScriptedLoop) -> None:
    with listening(app_of(loop, access=Access(keys=("sesame",)))) as url:
        page = open_page(url)
        expect(page.locator("#notice")).to_contain_text("needs its API key")
        ask(pane(page), "hi")
        expect(page.get_by_role("dialog")).to_be_visible()
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("sesame")
        page.keyboard.press("Enter")
        expect(answer(pane(page))).to_have_text("hello")
        expect(page.locator("#model")).to_have_text(MODEL)
        expect(page.locator("#notice")).to_be_hidden()
        page.reload()
        expect(page.locator("#model")).to_have_text(MODEL)


def test_one_of_several_models_is_chosen(open_page: Open) -> None:
    cards = [{"id": MODEL, "max_model_len": 96, "state": "loaded"}, {"id": "second", "state": "unloaded"}]
    asked: list[dict[str, Any]] = []

    def take(route: Any) -> None:
        asked.append(route.request.post_data_json)
        route.continue_(post_data=json.dumps({**asked[-1], "model": MODEL}))

    page = open_page()
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": cards}))
    page.route("**/v1/chat/completions", take)
    page.reload()
    models = page.get_by_label("Model", exact=True)
    expect(models.locator("option")).to_have_text([MODEL, "second"])
    models.select_option("second")
    expect(page.get_by_role("link", name="live").first).to_have_attribute("href", "/live?model=second")
    ask(pane(page), "hi")
    expect(answer(pane(page))).to_have_text("hello")
    assert [body["model"] for body in asked] == ["second"]
    page.reload()
    expect(models).to_have_value("second")


def test_a_model_that_does_not_chat_goes_on_with_the_text(
    open_page: Open, loop: ScriptedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Letters, *given: object, **more: object) -> list[int]:
        raise Unsupported("this model has no chat template: use /v1/completions", param="messages")

    monkeypatch.setattr(Letters, "chat", refuse)
    page = open_page()
    expect(page.locator("#notice")).to_contain_text("no chat template")
    ask(pane(page), "Once")
    expect(facts(pane(page))).to_be_visible()
    ask(pane(page), "upon")
    expect(pane(page).locator(".facts")).to_have_count(2)
    assert [told(query) for query in loop.queries] == ["Once", "Oncehelloupon"]
    assert loop.queries[-1].params.max_tokens == 64 - len("Oncehelloupon")


# Everyone


def test_everything_by_keyboard(page: Any, loop: ScriptedLoop) -> None:
    expect(pane(page).get_by_label("Your question")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    loop.held, loop.opening = True, "x"
    page.keyboard.press("Enter")
    expect(answer(pane(page))).to_have_text("x")
    assert told(loop.queries[0]) == "<user>one\ntwo"
    page.keyboard.press("Escape")
    assert loop.cancels.wait(PATIENCE)
    expect(facts(pane(page))).to_contain_text("stopped")
    page.get_by_role("button", name="Settings").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert page.evaluate("document.activeElement.id") == "set" and outline == "solid"


def test_a_reader_hears_whole_answers(page: Any, loop: ScriptedLoop) -> None:
    loop.held, loop.opening = True, "half"
    ask(pane(page), "hi")
    expect(answer(pane(page))).to_have_text("half")
    said = page.locator("#said")
    expect(said).to_have_text("")
    expect(said).to_have_attribute("role", "status")
    assert page.locator(".log[aria-live], .log [aria-live]").count() == 0
    loop.release()
    expect(said).to_have_text("Conversation 1: halfhello")
    assert page.get_by_role("main").count() == 1
    unnamed = "[...document.querySelectorAll('button, input, textarea')].filter((e) => !e.closest('template')"
    unnamed += " && !e.textContent.trim() && !e.getAttribute('aria-label') && !e.labels?.length).length"
    assert page.evaluate(unnamed) == 0


def test_a_phone_needs_no_sideways_scrolling_and_has_tabs(open_page: Open, loop: ScriptedLoop) -> None:
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    loop.answer = "x" * 40
    ask(pane(page), "h")
    expect(answer(pane(page))).to_have_text(loop.answer)
    page.get_by_role("button", name="+ Pane").click()
    expect(pane(page, 2).get_by_label("Your question")).to_be_in_viewport()
    expect(page.locator("#tabs button").nth(1)).to_have_class("seen")
    page.get_by_role("button", name="Conversation 1").click()
    expect(answer(pane(page, 1))).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.get_by_role("button", name="Settings").first.click()
    assert page.get_by_role("dialog").evaluate("(d) => d.scrollWidth <= d.clientWidth")
    expect(page.get_by_role("button", name="Done")).to_be_visible()


def test_light_and_dark(open_page: Open) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    page = open_page(color_scheme="dark")
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Light or dark").click()
    light = page.evaluate(paper)
    assert light != dark
    page.reload()
    assert page.evaluate(paper) == light
    assert open_page(color_scheme="light").evaluate(paper) == light


def test_the_docs_page(open_page: Open, base_url: str) -> None:
    page = open_page()
    page.goto(f"{base_url}/docs")
    expect(page.get_by_text("POST /v1/chat/completions")).to_be_visible()


def test_every_file_has_its_policy_and_asks_for_nothing_inline(base_url: str) -> None:
    for path in PAGE_FILES:
        response = httpx.get(base_url + path)
        assert response.status_code == 200
        assert response.headers["content-security-policy"] == PAGE_HEADERS["content-security-policy"]
        if PAGE_FILES[path][0].startswith("vendor/"):
            digest = hashlib.sha256(response.content).hexdigest()
            assert digest in VENDORED, f"{path} is not the file that its README names"
            continue
        text = response.text.replace("http://www.w3.org/2000/svg", "")
        assert not [word for word in (" style=", " onclick=", "innerHTML", "http://", "https://") if word in text], path


# For real


def test_the_built_in_model_answers(open_page: Open) -> None:
    with LLM(threads="1") as llm:
        app = create_app(llm.client, render_metrics=lambda: (b"", "text/plain"), version="9.9")
        with listening(app) as url:
            page = open_page(url)
            page.get_by_role("button", name="Four questions at once").click()
            expect(answer(pane(page, 1))).to_contain_text("5198")
            expect(answer(pane(page, 2))).to_contain_text("17, 23, 42, 99")
            expect(facts(pane(page, 4))).to_contain_text("% idle")
            expect(page.locator("#model")).to_have_text("baton-builtin")
