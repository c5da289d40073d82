"""The chat page in headless Chromium, before a slow model without weights and before a whole folder.

Set HERD_SCREENSHOTS to a folder to keep pictures of the page, in light and dark, wide and as on a phone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
expect = sync_api.expect
expect.set_options(timeout=20_000)  # the machine may be busy

FAKE = Path(__file__).parents[1] / "fake_herd.py"
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

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, str(FAKE), "serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait(10)
    process.stdout.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: sync_api.Browser) -> Iterator[Callable[..., sync_api.Page]]:
    """Opens a page in a context of its own; the test fails if the page's script has thrown or been refused anything."""
    contexts, faults = [], []

    def opened(url: str, **options: object) -> sync_api.Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
        page.goto(url)
        expect(page.locator("#model")).not_to_have_text("connecting…")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def page(server: str, open_page: Callable[..., sync_api.Page]) -> sync_api.Page:
    return open_page(server)


def ask(page: sync_api.Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def answers(page: sync_api.Page) -> sync_api.Locator:
    return page.locator(".assistant .text")


def cat(folder: Path, size: tuple[int, int] = (64, 48)) -> Path:
    path = folder / "cat.png"
    Image.new("RGB", size, "orange").save(path)
    return path


def test_an_answer_grows_on_the_page_until_it_is_stopped(page):
    expect(page.locator("#model")).to_have_text("fake")
    ask(page, "count")
    expect(answers(page)).to_contain_text("1 2 3")
    early = answers(page).inner_text()
    assert not early.endswith(" 1999")
    expect(answers(page)).to_contain_text(early + " ")
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    stopped = answers(page).inner_text()
    ask(page, "go on")
    expect(answers(page).nth(1)).to_have_text("go on")
    assert answers(page).first.inner_text() == stopped


def test_enter_sends_and_shift_enter_begins_a_line(page):
    page.get_by_label("Message").fill("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second")
    expect(page.locator(".user")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("first\nsecond", use_inner_text=True)
    expect(page.get_by_label("Message")).to_have_value("")


def test_the_whole_conversation_is_sent_each_time(page):
    sent = []
    page.on("request", lambda request: sent.append(request.post_data) if "completions" in request.url else None)
    for text in ("one", "two"):
        ask(page, text)
        expect(answers(page).last).to_have_text(text)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    roles = [message["role"] for message in json.loads(sent[-1])["messages"]]
    assert roles == ["user", "assistant", "user"]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, "three")
    expect(answers(page)).to_have_text("three")
    assert len(json.loads(sent[-1])["messages"]) == 1


def test_pictures_are_attached_shown_removed_and_seen_by_the_model(page, tmp_path):
    page.locator("#file").set_input_files([cat(tmp_path), cat(tmp_path)])
    expect(page.locator("#waiting img")).to_have_count(2)
    page.get_by_role("button", name="Remove picture 2").click()
    expect(page.locator("#waiting img")).to_have_count(1)
    ask(page, "what is it?")
    expect(answers(page)).to_have_text("[64x48]what is it?")
    expect(page.locator(".user img")).to_have_count(1)
    expect(page.locator("#waiting img")).to_have_count(0)


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_a_picture_can_be_pasted_and_dropped(page, tmp_path, event):
    data = list(cat(tmp_path).read_bytes())
    page.evaluate(
        """([kind, data]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(data)], "cat.png", { type: "image/png" }));
            const more = kind === "paste" ? { clipboardData: transfer } : { dataTransfer: transfer };
            const Kind = kind === "paste" ? ClipboardEvent : DragEvent;
            document.querySelector("#text").dispatchEvent(new Kind(kind, { bubbles: true, cancelable: true, ...more }));
        }""",
        [event, data],
    )
    expect(page.locator("#waiting img")).to_have_count(1)
    page.get_by_role("button", name="Send").click()
    expect(answers(page)).to_have_text("[64x48]")


def test_a_large_picture_and_one_that_only_browsers_read_are_redrawn(page, tmp_path):
    drawing = tmp_path / "drawing.svg"
    drawing.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="80" height="40"><rect width="80" height="40"/></svg>'
    )
    noise = tmp_path / "noise.bmp"
    Image.effect_noise((3000, 1500), 50).convert("RGB").save(noise)
    page.locator("#file").set_input_files([drawing, noise])
    expect(page.locator("#waiting img")).to_have_count(2)
    ask(page, "sizes")
    expect(answers(page)).to_have_text("[80x40][2048x1024]sizes")


def test_what_is_no_picture_is_reported_and_not_attached(page, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    page.locator("#file").set_input_files(tmp_path / "notes.png")
    expect(page.get_by_role("alert")).to_contain_text("notes.png is not a picture")
    expect(page.locator("#waiting img")).to_have_count(0)
    page.locator("#file").set_input_files(cat(tmp_path))
    expect(page.get_by_role("alert")).to_have_count(0)


def test_what_the_model_says_is_text_and_never_html(page):
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script><b>&amp;'
    ask(page, evil)
    expect(answers(page)).to_have_text(evil)
    assert page.locator("#log .turn :is(img, script, b)").count() == 0
    assert page.title() == "fake · Herd"


def test_arabic_runs_from_right_to_left_and_german_from_left_to_right(page):
    for text, direction in (("ما هي عاصمة اليابان؟", "rtl"), ("Wie heißt die Hauptstadt?", "ltr")):
        ask(page, text)
        expect(answers(page).last).to_have_text(text)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        for bubble in (answers(page).last, page.locator(".user .text").last):
            assert bubble.evaluate("node => getComputedStyle(node).direction") == direction


def test_a_refused_message_comes_back_into_the_form_with_the_reason(page, tmp_path):
    page.locator("#file").set_input_files(cat(tmp_path))
    ask(page, "long " * 500)
    expect(page.get_by_role("alert")).to_contain_text("the model's context 2000")
    assert page.get_by_label("Message").input_value() == ("long " * 500).strip()
    expect(page.locator("#waiting img")).to_have_count(1)
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, "short")
    expect(answers(page)).to_have_text("[64x48]short")


def test_a_failed_answer_is_reported_and_can_be_tried_again(page):
    ask(page, "so fail")
    expect(page.get_by_role("alert")).to_contain_text("the reason is in its log")
    expect(page.locator(".assistant")).to_have_count(0)
    page.route("**/completions", lambda route: route.abort())
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.unroute("**/completions")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("the reason is in its log")


def test_everything_has_a_name_and_can_be_reached_by_keyboard(page):
    for control in page.locator("button:visible, textarea:visible").all():
        name = control.get_attribute("aria-label") or control.inner_text().strip()
        assert name, control.evaluate("node => node.outerHTML")
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.type("hello")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("hello")
    expect(page.get_by_role("log")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [{"width": 1100, "height": 760}, PHONE], ids=["wide", "phone"])
def test_text_is_legible_and_nothing_runs_off_the_page(server, open_page, tmp_path, scheme, viewport):
    page = open_page(server, viewport=viewport, color_scheme=scheme)
    shots = Path(os.environ.get("HERD_SCREENSHOTS", tmp_path))
    name = f"{scheme}-{viewport['width']}"
    page.screenshot(path=shots / f"{name}-empty.png")
    ask(page, "Wie heißt die Hauptstadt von Japan? " * 4)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    ask(page, "ما هي عاصمة اليابان؟ طوكيو")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.locator("#file").set_input_files(cat(tmp_path, (320, 200)))
    ask(page, "这是什么动物？")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    ask(page, "W" * 300)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    ask(page, "fail")
    expect(page.get_by_role("alert")).to_be_visible()
    page.locator("#file").set_input_files(cat(tmp_path, (320, 200)))
    page.get_by_label("Message").fill("Two\nlines")
    expect(page.get_by_role("button", name="Try again")).to_be_in_viewport(ratio=1)
    page.screenshot(path=shots / f"{name}-talk.png")
    page.locator("main").evaluate("node => node.scrollTop = 0")
    page.screenshot(path=shots / f"{name}-top.png")
    page.get_by_role("button", name="New chat").click()
    ask(page, "count")
    expect(answers(page)).to_contain_text("5 6")
    page.screenshot(path=shots / f"{name}-running.png")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for selector in ("#model", ".who", ".user .text", ".assistant .text", "#new"):
        assert contrast(page, selector) >= 4.5, selector


def contrast(page: sync_api.Page, selector: str) -> float:
    """WCAG contrast of an element's text to what lies behind it."""
    ink, paper = page.locator(selector).first.evaluate(
        """node => {
            let behind = node;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor];
        }"""
    )

    def luminance(colour: str) -> float:
        channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted([luminance(ink), luminance(paper)])
    return (light + 0.05) / (dark + 0.05)


def test_the_button_turns_the_page_dark_and_it_stays_so(page):
    scheme = "getComputedStyle(document.documentElement).colorScheme"
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate(scheme) == "dark"
    page.reload()
    assert page.evaluate(scheme) == "dark"
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate(scheme) == "light"


@pytest.fixture
def whole(tiny_folder: Path) -> Iterator[str]:
    """The address of `herd serve` on a whole folder."""
    command = [sys.executable, "-m", "herd", "serve", str(tiny_folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield re.search(r"http://[0-9.:]+|$", process.stdout.readline())[0]
        finally:
            process.terminate()


def test_herd_serve_answers_on_the_page_from_a_whole_folder(whole, open_page, tmp_path):
    page = open_page(whole)
    expect(page.locator("#model")).to_have_text("random")
    page.locator("#file").set_input_files(cat(tmp_path))
    ask(page, "the cat sat on")
    expect(answers(page)).to_have_text(re.compile(r".{10}", re.DOTALL))
    page.keyboard.press("Escape")  # weights without training may go on to the end of the context
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    ask(page, "der Hund")
    expect(page.locator(".assistant")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
