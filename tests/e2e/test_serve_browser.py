"""The chat page in headless Chromium: what it may never lose, double or run. The rest of it: test_serve_page.py."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import json
import re

import pytest
from page_world import (  # noqa: F401
    address,
    answers,
    ask,
    asked,
    browser,
    ended,
    expect,
    field,
    kept,
    needs_chromium,
    open_page,
    page,
    said,
    served,
    turns,
)

pytestmark = needs_chromium

HOSTILE = [
    "<img src=x onerror=\"window.ran='img'\">",
    "<script>window.ran='script'</script>",
    "<svg onload=\"window.ran='svg'\"></svg>",
    "<iframe srcdoc=\"<script>parent.ran='frame'</script>\"></iframe>",
    "[a](javascript:window.ran='link')",
    "[a](JaVaScRiPt&colon;window.ran='link')",
    "[a](java\tscript:window.ran='tab')",
    "[a](data:text/html,<script>window.ran='data'</script>)",
    "[a](vbscript:window.ran) <javascript:window.ran='auto'>",
    "![a](https://evil.example/pixel.png) ![a](x\" onerror=\"window.ran='alt')",
    "[a](https://evil.example/\"onmouseover=\"window.ran='attribute')",
    "[![a](https://evil.example/b.png)](https://evil.example/c)",
    "```html\n<script>window.ran='fence'</script>\n```",
    "```\"onclick=window.ran='language'\nx\n```",
    "| <img src=x onerror=window.ran='cell'> |\n|---|\n| <script>window.ran='cell'</script> |",
    "**<b onclick=window.ran=1>bold</b>** `<img src=x onerror=window.ran='code'>`",
    "- [ ] <style>*{display:none}</style>\n- <form action=https://evil.example><button>go</button></form>",
    "# <a href=javascript:window.ran='heading'>x</a>",
    "<meta http-equiv=refresh content=0;url=https://evil.example> <base href=https://evil.example>",
    "&lt;script&gt;window.ran='entity'&lt;/script&gt; \\<script>window.ran='escape'</script>",
]


def test_what_a_model_says_is_shown_and_never_runs_or_loads(page):
    text = "\n\n".join(HOSTILE)
    answer = asked(page, text)
    for planted in (
        "<img src=x onerror=\"window.ran='img'\">",
        "window.ran='fence'",
        "[a](javascript:window.ran='link')",
    ):
        expect(answer).to_contain_text(planted)
    allowed = "P, BR, A, STRONG, EM, CODE, FIGURE, FIGCAPTION, BUTTON, PRE, SPAN, DIV, UL, LI, INPUT, H3"
    allowed += ", TABLE, THEAD, TBODY, TR, TH, TD"
    seen = answer.evaluate(
        "node => [...node.querySelectorAll('*')].map((one) => [one.tagName, ...one.getAttributeNames()])"
    )
    assert {name for name, *_ in seen} <= set(allowed.split(", "))
    assert not [
        name for _, *names in seen for name in names if name.startswith("on") or name in ("style", "src", "id", "name")
    ]
    for link in answer.locator("a").all():
        assert link.get_attribute("href").startswith("https://evil.example/")
        assert "noopener" in link.get_attribute("rel")
        link.hover()
    for node in answer.locator("code").all():
        node.click()
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.querySelectorAll('script, style, base, meta[http-equiv], iframe, form').length") == 6
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")


def test_a_conversation_a_draft_and_what_was_said_of_a_broken_answer_survive_a_reload(page):
    asked(page, "first words")
    ask(page, "count")
    expect(answers(page).last).to_contain_text("1 2 3")
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    before = turns(page)
    assert before[0] == before[1] == "first words" and not before[3].endswith(" 1999")
    page.reload()
    expect(page.locator(".turn")).to_have_count(4)
    assert turns(page) == before
    ask(page, "count")
    expect(answers(page).last).to_contain_text(" 70 ")  # past the half second after which it is kept
    field(page).fill("a thought")
    page.reload()
    expect(page.locator(".error")).to_contain_text("Broken off")
    expect(answers(page).last).to_contain_text("1 2 3")
    expect(field(page)).to_have_value("a thought")
    assert turns(page)[:4] == before and len(turns(page)) == 6
    ended(page)


DEAF = """window.BroadcastChannel = class extends BroadcastChannel {
    set onmessage(listener) { super.onmessage = (event) => { if (!window.deaf) listener(event); }; }
};"""
"""A tab that hears nothing of the others as long as it is deaf, as if both did something in the same moment."""


def test_two_tabs_lose_and_double_no_message(page, open_page):
    asked(page, "hello")
    other = open_page(page.url, beside=page, script=DEAF)
    expect(answers(other)).to_have_text("hello")
    # What one sends, the other shows, while it is written.
    ask(page, "count")
    expect(answers(other).last).to_contain_text("1 2 3")
    expect(other.get_by_role("button", name="Send")).to_be_hidden()
    other.get_by_role("button", name="Stop the answer").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    ended(other)
    # Both send at once: neither message may be lost, and each has its own answer.
    other.evaluate("window.deaf = true")
    ask(page, "from one")
    ask(other, "from two")
    for tab, text in ((page, "from one"), (other, "from two")):
        expect(answers(tab).last).to_have_text(text)
        ended(tab)
    assert said(page, "user") == ["count", "from one", "from two", "hello"]
    assert [text for text in said(page, "assistant") if "1 2" not in text] == ["from one", "from two", "hello"]
    for tab, text in ((page, "from one"), (other, "from two")):
        assert turns(tab)[-2:] == [text, text]
    page.reload()
    expect(page.locator(".user .place")).to_have_text("2/2")
    assert turns(page)[-2:] == ["from two", "from two"]


def test_a_dead_network_loses_and_doubles_nothing(page):
    asked(page, "before")
    page.route("**/completions", lambda route: route.abort())
    ask(page, "unlucky")
    expect(page.locator(".error")).to_contain_text("cannot be reached")
    page.reload()
    expect(page.locator(".error")).to_contain_text("cannot be reached")
    page.get_by_role("button", name="Try again").last.click()
    expect(page.locator(".error")).to_contain_text("cannot be reached")
    page.unroute("**/completions")
    # A stream that ends before its end: what came is kept, and asking again does not double it.
    broken = 'data: {"choices": [{"delta": {"content": "half an"}, "finish_reason": null}]}\n\n'
    page.route("**/completions", lambda route: route.fulfill(content_type="text/event-stream", body=broken))
    page.get_by_role("button", name="Try again").last.click()
    expect(page.locator(".error")).to_contain_text("Broken off")
    assert turns(page) == ["before", "before", "unlucky", "half an"]
    page.unroute("**/completions")
    page.get_by_role("button", name="Try again").last.click()
    expect(answers(page).last).to_have_text("unlucky")
    ended(page)
    assert turns(page) == ["before", "before", "unlucky", "unlucky"]
    assert said(page, "user") == ["before", "unlucky"]
    assert said(page, "assistant") == ["before", "half an", "unlucky"]


def test_what_the_guard_blocked_is_named_and_the_model_does_not_read_it_later(page):
    sent = []
    page.on(
        "request", lambda request: sent.append(json.loads(request.post_data)) if "completions" in request.url else None
    )
    asked(page, "a FORBIDDEN thing")
    blocked = page.get_by_role("note", name="Blocked by the guard")
    expect(blocked).to_contain_text("the guard found S1 Violent Crimes")
    asked(page, "words that are good and well and then POISON comes")
    expect(blocked.last).to_contain_text("Cut off here")
    shown = answers(page).last.inner_text()
    assert shown.startswith("words that are") and "POISON" not in shown
    page.reload()
    expect(blocked).to_have_count(2)
    asked(page, "go on")
    assert [(one["role"], one["content"].split()[0]) for one in sent[-1]["messages"]] == [
        ("user", "words"),
        ("assistant", "words"),
        ("user", "go"),
    ]
    assert sent[-1]["messages"][1]["content"].strip() == shown.strip()


def test_an_edit_and_a_second_answer_are_versions_and_nothing_is_overwritten(page):
    sent = []
    page.on(
        "request", lambda request: sent.append(json.loads(request.post_data)) if "completions" in request.url else None
    )
    asked(page, "one")
    asked(page, "two")
    page.locator(".user").first.get_by_role("button", name="Edit").click()
    expect(field(page)).to_have_value("one")
    ask(page, "uno")
    expect(answers(page)).to_have_text(["uno"])
    ended(page)
    assert [one["content"] for one in sent[-1]["messages"]] == ["uno"]
    page.get_by_role("button", name="Version before").click()
    assert turns(page) == ["one", "one", "two", "two"]
    page.reload()
    expect(page.locator(".turn")).to_have_count(4)
    assert turns(page) == ["one", "one", "two", "two"]
    page.get_by_role("button", name="Try again").last.click()
    expect(page.locator(".assistant .place")).to_have_text("2/2")
    ended(page)
    assert [one["content"] for one in sent[-1]["messages"]] == ["one", "one", "two"]
    assert sent[-1]["temperature"] == 0.8 and "temperature" not in sent[-2]
    assert len(kept(page)) == 7


RENDERED = [
    ("# Hi #\nfirst\nsecond", "<h3>Hi</h3><p>first<br>second</p>"),
    ("**bold *it* more** ***both*** snake_case_name ~~no~~ **open", "<p><strong>bold <em>it</em> more</strong> "
     "<strong><em>both</em></strong> snake_case_name <del>no</del> **open</p>"),
    ("- a\n- b\n  - c\n\ntext", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>text</p>"),
    ("1. one\n   ```\n   code\n   ```\n2. two", "<ol><li>one[text]<pre><code>code</code></pre></li><li>two</li></ol>"),
    ("> q\n> - l\n\n---", "<blockquote><p>q</p><ul><li>l</li></ul></blockquote><hr>"),
    ("| a | b |\n|:-:|--:|\n| `x|y` | 2 |", "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
     "<tbody><tr><td><code>x|y</code></td><td>2</td></tr></tbody></table>"),
    ("https://e.com/a_(b). [l](https://e.com) [bad](ftp://e.com)",
     "<p><a>https://e.com/a_(b)</a>. <a>l</a> [bad](ftp://e.com)</p>"),
    ("``a ` b`` \\*no\\* `open\nIn\n1986. it", "<p><code>a ` b</code> *no* `open<br>In<br>1986. it</p>"),
    ("```py\ndef f(): # c\n    return 'x'", "[py]<pre><code><keyword>def</keyword> <call>f</call>(): "
     "<comment># c</comment>\n    <keyword>return</keyword> <string>'x'</string></code></pre>"),
    ("```unknown\n<b>\n```\nafter", "[unknown]<pre><code>&lt;b&gt;</code></pre><p>after</p>"),
]  # fmt: skip


def test_markdown_and_code_become_nodes_whole_or_in_pieces(page):
    def rendered(source: str, pieces: bool) -> str:
        html = page.evaluate(
            """async ([source, pieces]) => {
                const { renderMarkdown } = await import("/web/markdown.js");
                const node = document.createElement("div");
                if (pieces) for (let end = 1; end < source.length; end += 1) renderMarkdown(node, source.slice(0, end));
                renderMarkdown(node, source);
                return node.innerHTML;
            }""",
            [source, pieces],
        )
        html = re.sub(r"<figcaption>(\w+).*?</figcaption>", r"[\1]", html)
        html = re.sub(r'<span class="(\w+)">(.*?)</span>', r"<\1>\2</\1>", html)
        return re.sub(r"</?(figure|div)[^>]*>", "", re.sub(r"<(\w+) [^>]*>", r"<\1>", html))

    for source, expected in RENDERED:
        assert rendered(source, pieces=False) == expected
        assert rendered(source, pieces=True) == expected


def test_what_is_read_before_the_storage_is_open_waits_for_it(page):
    script = """async () => {
        const store = await import(new URL("web/store.js?another", location.href).href);
        const early = store.allChats();
        await store.openStore();
        return (await early).length;
    }"""
    assert page.evaluate(script) == 0
