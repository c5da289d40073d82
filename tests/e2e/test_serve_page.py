"""The chat page in headless Chromium: pictures and videos, conversations, tabs, keys, models, storage, and a whole
folder behind it. How it looks and is read: test_serve_page_looks.py. What may never go wrong: test_serve_browser.py.
"""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_world import (  # noqa: F401
    address,
    answers,
    ask,
    asked,
    browser,
    cat,
    ended,
    expect,
    field,
    kept,
    needs_chromium,
    open_page,
    page,
    page_server,
    said,
    served,
    shot,
    turns,
)
from PIL import Image

from herd.serve.keys import Key, Keys

pytestmark = [needs_chromium, pytest.mark.slow]


def test_enter_sends_and_shift_enter_begins_a_line(page):
    field(page).fill("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second")
    expect(page.locator(".user")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("first\nsecond", use_inner_text=True)
    expect(field(page)).to_have_value("")


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


def test_a_refused_message_comes_back_into_the_form_with_the_reason(page, tmp_path):
    page.locator("#file").set_input_files(cat(tmp_path))
    ask(page, "long " * 500)
    expect(page.get_by_role("alert")).to_contain_text("the model's context 2000")
    assert field(page).input_value() == ("long " * 500).strip()
    expect(page.locator("#waiting img")).to_have_count(1)
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, "short")
    expect(answers(page)).to_have_text("[64x48]short")


def test_a_video_is_sent_as_one_and_one_that_is_too_large_is_named(page, tmp_path):
    pytest.importorskip("av")
    from video_files import clip

    (tmp_path / "clip.mp4").write_bytes(clip(30))
    (tmp_path / "film.mp4").write_bytes(bytes(21 * 2**20))
    page.locator("#file").set_input_files([tmp_path / "clip.mp4", tmp_path / "film.mp4"])
    expect(page.get_by_role("alert")).to_contain_text("film.mp4 has 21.0 MiB; a video may have 20")
    expect(page.locator("#waiting video")).to_have_count(1)
    page.reload()
    expect(page.locator("#waiting video")).to_have_count(1)
    expect(asked(page, "what moves?")).to_have_text("[video of 3]what moves?")
    expect(page.locator(".user video")).to_have_attribute("aria-label", "attached: clip.mp4")


def test_conversations_are_listed_renamed_and_deleted_drafts_too(page):
    asked(page, "about cats")
    page.get_by_role("button", name="New chat").click()
    asked(page, "about dogs")
    page.get_by_role("button", name="New chat").click()
    field(page).fill("unsent thought")
    names = page.locator("#chats [data-act=open]")
    expect(names).to_have_text(["Draft: unsent thought", "about dogs", "about cats"])
    names.nth(2).click()
    expect(answers(page)).to_have_text("about cats")
    page.get_by_role("button", name="Rename “about cats”").click()
    page.keyboard.type("<b>Felines</b>")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["Draft: unsent thought", "about dogs", "<b>Felines</b>"])
    page.reload()
    expect(names).to_have_text(["Draft: unsent thought", "about dogs", "<b>Felines</b>"])
    for press in ("Cancel", "Delete"):
        page.get_by_role("button", name="Delete “about dogs”").click()
        page.get_by_role("dialog").get_by_role("button", name=press).click()
        expect(names).to_have_count({"Cancel": 3, "Delete": 2}[press])
    names.first.click()
    expect(field(page)).to_have_value("unsent thought")
    asked(page, "unsent thought, sent")
    expect(names.first).to_have_text("unsent thought, sent")
    page.go_back()
    expect(answers(page)).to_have_text("about cats")


def test_an_answer_goes_on_in_the_background_and_does_not_come_back_once_deleted(page, open_page):
    ask(page, "count")
    expect(answers(page)).to_contain_text("1 2 3")
    page.get_by_role("button", name="New chat").click()
    asked(page, "meanwhile")
    page.locator("#chats [data-act=open]").last.click()
    expect(answers(page)).to_contain_text(" 60 ")
    other = open_page(page.url, beside=page)
    other.get_by_role("button", name="Delete “count”").click()
    other.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".turn")).to_have_count(0)
    ended(page)
    page.reload()
    expect(page.locator("#chats li")).to_have_count(1)


def test_three_tabs_write_into_one_conversation_and_no_message_is_lost_or_doubled(page, open_page):
    asked(page, "start")
    tabs = [page, open_page(page.url, beside=page), open_page(page.url, beside=page)]
    wanted = ["start"]
    for turn in range(4):
        for number, tab in enumerate(tabs):
            field(tab).fill(f"turn {turn} of {number}")
            wanted.append(f"turn {turn} of {number}")
        for tab in tabs:  # twice, as impatient people do
            tab.evaluate("for (const _ of [1, 2]) document.querySelector('#composer').requestSubmit()")
        for tab in tabs:
            if field(tab).input_value():  # it was busy with what another tab had sent
                ended(tab)
                tab.evaluate("document.querySelector('#composer').requestSubmit()")
        for tab in tabs:
            ended(tab)
            expect(field(tab)).to_have_value("")
    assert said(page, "user") == said(page, "assistant") == sorted(wanted)
    assert {one["state"] for one in kept(page) if one["role"] == "assistant"} == {"done"}


def test_a_key_is_asked_for_kept_for_the_tab_and_on_the_device_only_if_ticked(browser, open_page):
    secret = "a-secret-key-of-24-letters"
    key = Key(name="me", digest=hashlib.sha256(secret.encode()).digest())
    with page_server(keys=Keys([key])) as locked:
        url = f"http://127.0.0.1:{locked.port}/"
        page = browser.new_context().new_page()
        page.goto(url)
        dialog = page.get_by_role("dialog", name="Key")
        expect(dialog).to_contain_text("This server asks for a key.")
        shot(page, "key")
        for given in ("wrong", secret):
            dialog.get_by_label("Key of this server").fill(given)
            page.keyboard.press("Enter")
            if given == "wrong":
                expect(dialog).to_contain_text("does not know this key")
        expect(page.locator("#model")).to_have_text("fake")
        expect(asked(page, "hello")).to_have_text("hello")
        assert page.evaluate("[sessionStorage, localStorage].map((one) => one.getItem('key'))") == [secret, None]
        assert secret not in page.evaluate("JSON.stringify({ ...localStorage })")
        page.reload()
        expect(page.locator("#model")).to_have_text("fake")
        page.get_by_role("button", name="Key", exact=True).click()
        dialog.get_by_label("Key of this server").fill(secret)
        dialog.get_by_label("Remember it on this device").check()
        dialog.get_by_role("button", name="Use").click()
        expect(dialog).to_be_hidden()
        assert page.evaluate("[sessionStorage, localStorage].map((one) => one.getItem('key'))") == [None, secret]
        page.get_by_role("button", name="Key", exact=True).click()
        dialog.get_by_role("button", name="Forget the key").click()
        expect(dialog).to_be_hidden()
        assert page.evaluate("[sessionStorage, localStorage].map((one) => one.getItem('key'))") == [None, None]
        # A message that is sent without one is kept, and goes out once there is a key.
        ask(page, "again")
        dialog.get_by_role("button", name="Cancel").click()
        expect(page.locator(".error")).to_contain_text("a key is needed")
        page.get_by_role("button", name="Try again").last.click()
        dialog.get_by_label("Key of this server").fill(secret)
        page.keyboard.press("Enter")
        expect(answers(page).last).to_have_text("again")
        page.context.close()


def test_a_model_is_chosen_where_several_are_served_and_kept_with_the_conversation(page):
    card = {"object": "model", "created": 1, "owned_by": "herd"}
    listed = {"object": "list", "data": [{"id": name, **card} for name in ("fake", "other")]}
    page.route("**/v1/models", lambda route: route.fulfill(json=listed))
    sent = []

    def answer(route):
        sent.append(json.loads(route.request.post_data)["model"])
        event = {"choices": [{"delta": {"content": f"I am {sent[-1]}"}, "finish_reason": "stop"}]}
        route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")

    page.route("**/completions", answer)
    page.reload()
    chooser = page.get_by_label("Model")
    expect(chooser).to_be_visible()
    expect(asked(page, "who?")).to_have_text("I am fake")
    chooser.select_option("other")
    expect(asked(page, "and now?")).to_have_text("I am other")
    page.get_by_role("button", name="New chat").click()
    chooser.select_option("fake")
    asked(page, "first of another")
    page.reload()
    expect(chooser).to_have_value("fake")
    page.go_back()
    expect(answers(page)).to_have_text(["I am fake", "I am other"])
    expect(chooser).to_have_value("other")
    assert sent == ["fake", "other", "fake"]


def test_without_storage_the_page_works_and_says_that_it_keeps_nothing(browser, address):
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(window, 'indexedDB', { get() { throw new Error('off'); } });")
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_role("alert")).to_contain_text("This browser keeps nothing here")
    expect(asked(page, "hello")).to_have_text("hello")
    asked(page, "you")
    assert turns(page) == ["hello", "hello", "you", "you"]
    page.get_by_role("button", name="New chat").click()
    page.locator("#chats [data-act=open]").click()
    expect(page.locator(".turn")).to_have_count(4)
    context.close()


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
    page = open_page(whole, origin=whole)
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
