"""The chat page in headless Chromium, before a model without weights, for the tests that look at it."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from herd.guard.model_guard import Verdict
from herd.guard.stream import GuardFilter, GuardGate
from herd.guard.taxonomy import HAZARDS

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
expect = sync_api.expect
expect.set_options(timeout=20_000)  # the machine may be busy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Chromium reaches for its maker's hosts in the background unless reported not to.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 390, "height": 760}
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


class WordGuard:
    """Unsafe are FORBIDDEN in a question and POISON in an answer."""

    policy = HAZARDS

    def judge(self, messages: Any) -> Verdict:
        last = messages[-1]
        unsafe = {"user": "FORBIDDEN", "assistant": "POISON"}[last["role"]] in str(last["content"])
        return Verdict(unsafe=unsafe, score=float(unsafe), categories=("S1",) if unsafe else ())


class WordGate(GuardGate):
    def filter(self, messages: Any, caller: str = "") -> GuardFilter:
        return GuardFilter(self.guard, messages, chunk_chars=12)


@contextmanager
def page_server(**options: Any) -> Iterator[Any]:
    """The server behind the page: its `port`, and `model.last_engine`, which has seen all prompts."""
    from fake_herd import FakeModel
    from serve_world import Running, serving

    from herd.engine.pipeline import AnswerPipeline
    from herd.serve import server as api
    from herd.serve.models import one_model

    model = FakeModel(delay_s=0.01)
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        pipeline = AnswerPipeline(model, engine, gate=WordGate(WordGuard()))
        app = api.create_app(one_model(pipeline, name="fake"), **options)
        with serving(app, engine, listener):
            yield Running(model, listener.getsockname()[1])


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    with page_server() as running:
        yield running


@pytest.fixture(scope="module")
def address(served: Any) -> str:
    return f"http://127.0.0.1:{served.port}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens a page in a context of its own, or in that of the page `beside`. The test fails if a page's script has
    thrown, the policy has refused anything, or anything was asked of another host."""
    contexts, faults = [], []

    def opened(
        url: str = address, *, origin: str = address, beside: Any = None, script: str = "", **options: object
    ) -> Any:
        context = beside.context if beside else browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.add_init_script(script)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if "ontent Security" in message.text else None)
        page.on(
            "request",
            lambda request: None if request.url.startswith((origin, "data:", "blob:")) else faults.append(request.url),
        )
        page.goto(url)
        expect(page.locator("#model")).not_to_have_text("connecting…")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults, faults


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    return open_page()


def field(page: Any) -> Any:
    return page.get_by_label("Message", exact=True)


def kept(page: Any) -> list[dict[str, Any]]:
    """All messages in the browser's database."""
    found: list[dict[str, Any]] = page.evaluate(
        """() => new Promise((resolve) => {
            const opened = indexedDB.open("herd");
            opened.onsuccess = () => {
                const all = opened.result.transaction("messages").objectStore("messages").getAll();
                all.onsuccess = () => resolve(all.result);
            };
        })"""
    )
    return found


def said(page: Any, role: str) -> list[str]:
    """The texts of all messages of this role in the browser's database, sorted."""
    return sorted(one["text"] for one in kept(page) if one["role"] == role)


def ask(page: Any, text: str) -> None:
    field(page).fill(text)
    page.keyboard.press("Enter")


def asked(page: Any, text: str) -> Any:
    """Asks, waits for the end of the answer, and gives its text."""
    number = page.locator(".assistant").count()
    ask(page, text)
    expect(page.locator(".assistant")).to_have_count(number + 1)
    ended(page)
    return answers(page).last


def ended(page: Any) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def answers(page: Any) -> Any:
    return page.locator(".assistant .text")


def turns(page: Any) -> list[str]:
    """What is on the page, in order."""
    return [turn.strip() for turn in page.locator(".turn > .text").all_inner_texts()]


def shot(page: Any, name: str) -> None:
    """A picture of the page, where HERD_SCREENSHOTS names a folder."""
    if folder := os.environ.get("HERD_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def cat(folder: Path, size: tuple[int, int] = (64, 48)) -> Path:
    path = folder / "cat.png"
    Image.new("RGB", size, "orange").save(path)
    return path
