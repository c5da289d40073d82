"""The chat page in headless Chromium: how it looks, is read aloud and used by keyboard, directions of writing, time.

Set HERD_SCREENSHOTS to a folder to keep pictures of the page, in light and dark, wide and as on a phone.
"""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import re

import pytest
from page_world import (  # noqa: F401
    PHONE,
    address,
    answers,
    ask,
    asked,
    browser,
    cat,
    ended,
    expect,
    field,
    needs_chromium,
    open_page,
    page,
    served,
    shot,
    sync_api,
)

pytestmark = [needs_chromium, pytest.mark.slow]


def test_arabic_runs_from_right_to_left_and_german_from_left_to_right_code_always_so(page):
    direction = "node => getComputedStyle(node).direction"
    for text, expected in (("ما هي عاصمة اليابان؟", "rtl"), ("Wie heißt die Hauptstadt?", "ltr")):
        asked(page, text)
        for bubble in (answers(page).last.locator("p"), page.locator(".user .text").last):
            assert bubble.evaluate(direction) == expected
    # Lists, quotes and tables follow their first letter; code in them does not, nor does it decide.
    answer = asked(
        page, "- `code` ثم كلمة\n- كلمة\n\n> اقتباس\n\n| أ | ب |\n|---|---|\n| ج | د |\n\n```py\nx = 1 # كلمة\n```"
    )
    for selector in ("ul", "li", "blockquote", "table"):
        assert answer.locator(selector).first.evaluate(direction) == "rtl", selector
    for selector in ("li code", "figure", "pre"):
        assert answer.locator(selector).first.evaluate(direction) == "ltr", selector
    shot(page, "right-to-left")


LONG = """## Ein Überblick

Some **bold** and *slanted* words, `code`, and a [link](https://example.org/a).

1. first
2. second
   - [x] done
   - [ ] to do

> A quotation.

| Name | Number |
|:-----|-------:|
| cat  |     42 |

```python
@cache
def greet(name: str, times=3) -> str:  # a comment that is rather long, so that the line does not fit on a phone
    return f"hello {name}" * times
```"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [{"width": 1100, "height": 760}, PHONE], ids=["wide", "phone"])
def test_text_is_legible_and_nothing_runs_off_the_page(open_page, tmp_path, scheme, viewport):
    page = open_page(viewport=viewport, color_scheme=scheme)
    name = f"{scheme}-{viewport['width']}"
    shot(page, f"{name}-empty")
    asked(page, "Wie heißt die Hauptstadt von Japan? " * 4)
    asked(page, "ما هي عاصمة اليابان؟ طوكيو")
    page.locator("#file").set_input_files(cat(tmp_path, (320, 200)))
    asked(page, "这是什么动物？")
    shot(page, f"{name}-picture")
    asked(page, "W" * 300)
    asked(page, LONG)
    shot(page, f"{name}-markdown")
    check_looks(page)
    page.get_by_role("button", name="New chat").click()
    asked(page, "words that are good and well and then POISON comes")
    asked(page, "a FORBIDDEN thing")
    shot(page, f"{name}-blocked")
    asked(page, "fail")
    page.locator("#file").set_input_files(cat(tmp_path, (320, 200)))
    field(page).fill("Two\nlines")
    expect(page.get_by_role("button", name="Try again").last).to_be_in_viewport(ratio=1)
    shot(page, f"{name}-error")
    check_looks(page)
    if page.locator("#list").is_hidden():
        page.get_by_role("button", name="Conversations", exact=True).click()
        shot(page, f"{name}-list")
        page.locator("#chats [data-act=open]").first.click()
        expect(page.locator("#list")).to_be_hidden()
    page.get_by_role("button", name="New chat").click()
    ask(page, "count")
    expect(answers(page)).to_contain_text("5 6")
    shot(page, f"{name}-running")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    shot(page, f"{name}-keys")


def check_looks(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colours = [
        "#model",
        ".who",
        ".user .text",
        ".assistant .text p",
        ".code pre",
        ".code figcaption",
        ".note",
        ".error p",
    ]
    colours += [".blocked p", ".why", ".aside", ".hint", ".acts", "#new", ".assistant a"]
    colours += [f".code .{kind}" for kind in ("comment", "string", "number", "keyword", "call", "meta")]
    for selector in colours:
        assert not page.locator(selector).count() or contrast(page, selector) >= 4.5, selector


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


def test_the_button_switches_light_and_dark_and_back_to_the_systems(page):
    scheme = "getComputedStyle(document.documentElement).colorScheme"
    button = page.get_by_role("button", name="Light or dark")
    expect(button).to_have_accessible_name("Light or dark: as the system")
    button.click()
    assert page.evaluate(scheme) == "dark"
    page.reload()
    assert page.evaluate(scheme) == "dark"
    button.click()
    assert page.evaluate(scheme) == "light"
    button.click()
    assert page.evaluate(scheme) == "light dark"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 26)"


def test_everything_has_a_name_and_can_be_done_by_keyboard(page):
    asked(page, "hello\n\n```\ncode\n```")
    page.keyboard.press("Control+Shift+KeyO")
    expect(page.locator(".turn")).to_have_count(0)
    expect(field(page)).to_be_focused()
    asked(page, "other")
    for control in page.locator(":is(button, textarea, input, select, [tabindex='0']):visible").all():
        name = control.get_attribute("aria-label") or control.inner_text().strip()
        assert name, control.evaluate("node => node.outerHTML")
    # The list: into it, to the older conversation, back to the field.
    page.keyboard.press("Control+Shift+KeyS")
    expect(page.locator("#list")).to_be_hidden()
    page.keyboard.press("Control+Shift+KeyS")
    expect(page.locator("#chats [aria-current]")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(answers(page)).to_contain_text("hello")
    # Every control of the page is in the order of Tab, and can be seen when it is.
    expect(field(page)).to_be_focused()
    seen = []
    for _ in range(30):
        page.keyboard.press("Shift+Tab")
        seen.append(
            page.evaluate(
                "document.activeElement.dataset.act || document.activeElement.id || document.activeElement.tagName"
            )
        )
        assert page.evaluate(
            "!document.activeElement.closest('.turn, #chats') || getComputedStyle(document.activeElement).opacity > 0.4"
        )
    assert {
        "attach",
        "retry",
        "copy",
        "edit",
        "copy-code",
        "PRE",
        "rename",
        "delete",
        "open",
        "new",
        "theme",
        "help-button",
    } <= set(seen)
    page.keyboard.press("Escape")
    expect(field(page)).to_be_focused()
    # An edit, given up and sent; another answer; the help.
    page.keyboard.press("ArrowUp")
    expect(field(page)).to_have_value("hello\n\n```\ncode\n```")
    page.keyboard.press("Escape")
    expect(field(page)).to_have_value("")
    page.keyboard.press("Control+Shift+KeyE")
    page.keyboard.press("Control+KeyA")
    page.keyboard.type("edited")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text(["edited"])
    ended(page)
    page.keyboard.press("Control+Shift+KeyY")
    expect(page.locator(".assistant .place")).to_have_text("2/2")
    ended(page)
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_screen_reader_is_given_whole_sentences_once_and_the_outcome(page):
    page.evaluate(
        """() => {
            window.heard = [];
            new MutationObserver((changes) => {
                for (const change of changes) for (const node of change.addedNodes) heard.push(node.textContent);
            }).observe(document.querySelector("[aria-live=polite]"), { childList: true });
        }"""
    )
    expect(page.get_by_role("log")).to_have_attribute("aria-live", "off")
    ask(page, "One two **three**. Four five? " + "six " * 30)
    expect(page.locator(".assistant")).to_have_attribute("aria-busy", "true")
    ended(page)
    expect(page.get_by_role("status")).to_have_text("Answer complete")
    heard = page.evaluate("window.heard")
    assert len(heard) >= 2 and heard[0].startswith("One two")
    assert re.findall(r"\w+", " ".join(heard)) == ["One", "two", "three", "Four", "five", *["six"] * 30]
    asked(page, "a FORBIDDEN thing")
    expect(page.get_by_role("status")).to_contain_text("Blocked by the guard. I can't help with that")
    asked(page, "fail")
    expect(page.get_by_role("status")).to_contain_text("the server failed")


def test_it_is_painted_within_a_second_and_loads_under_150_kilobytes(open_page):
    page = open_page()
    paints = []
    for _ in range(3):
        page.reload()
        expect(page.locator("#model")).to_have_text("fake")
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    sizes = page.evaluate("performance.getEntriesByType('resource').map((one) => one.encodedBodySize)")
    print(f"first paint {min(paints):.0f} ms, {len(sizes)} files, {sum(sizes):,} bytes")
    assert min(paints) < 1000
    assert sum(sizes) < 150_000


@pytest.mark.parametrize("language", ["", "```css\n", "```bash\n", "```html\n", "```python\n", "| a |\n|---|\n"])
def test_no_text_makes_the_renderer_slow(page, language):
    """60,000 characters take milliseconds; where time is quadratic, they take minutes."""
    units = [
        "*a ",
        "**a **b ",
        "[",
        "[a](",
        "`",
        "` ``",
        "_a_",
        "> ",
        "- ",
        "***",
        "*_",
        "![",
        "<http://",
        "http://x/)",
    ]
    units += [
        "|a",
        "# ",
        "  - a\n",
        "((",
        "[](x) ",
        "${",
        "#[",
        "<!",
        "'",
        '"',
        "-a",
        "/*",
        "@a",
        "0x",
        "$(",
        "\\",
        ")",
    ]
    units += ["a", " "]
    times = page.evaluate(
        """async ([units, language]) => {
            const { renderMarkdown } = await import("/web/markdown.js");
            const times = [];
            for (const unit of units) {
                const node = document.createElement("div"), begin = performance.now();
                renderMarkdown(node, language + unit.repeat(60_000 / unit.length));
                times.push([unit, performance.now() - begin]);
            }
            return times;
        }""",
        [units, language],
    )
    assert max(time for _, time in times) < 3000, sorted(times, key=lambda one: -one[1])[:3]
