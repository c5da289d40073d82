"""`herd data show` and `herd data stats`."""

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from herd.cli import main
from herd.config import VisionConfig
from herd.data.loading import tables
from herd.data.media.image import ImageProcessor, read_picture
from herd.data.tokens.tokenizer import Tokenizer, train_tokenizer
from herd.data.view.items import Reader, Shown, Span, Wanted, find, spans_of, tables_of
from herd.data.view.page import write_page
from herd.data.view.stats import stats
from herd.data.view.terminal import half_blocks, show, tokens

SMALL = train_tokenizer(["the cat sat on the mat. ", "ein Häuschen im Wald. "] * 20, 700)


@given(st.text(max_size=80), st.lists(st.sampled_from(["<|eot|>", "<|patch|>"]), max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_spans_of_tokens_are_the_text(text: str, special: list[str]):
    text = text.encode("utf-8", "ignore").decode()
    ids = [*SMALL.encode(text), *(SMALL.special[name] for name in special), *SMALL.encode(text)]
    spans = spans_of(SMALL, ids, [True] * len(ids))
    assert "".join(span.text for span in spans if not span.special) == text * 2
    named = [re.fullmatch(r"(\S+?)(?: x (\d+))?", span.text) for span in spans if span.special]
    assert [name for found in named if found for name in [found[1]] * int(found[2] or 1)] == special


def test_what_is_learnt_of_a_chat_is_what_the_assistant_said(tiny_data: Path):
    reader = Reader(tokenizer=Tokenizer.load(tiny_data / "tokenizer"), processor=ImageProcessor(None))
    rows = {row["id"]: json.loads(row["messages"]) for row in tables.read(tiny_data, "chats")}
    shown = list(find(tiny_data, "chats", Wanted(split="train"), reader, num=40))
    assert len(shown) == 40
    for one in shown:
        said = "".join(span.text for span in one.spans if span.learnt)
        answers = [message["content"] for message in rows[one.id] if message["role"] == "assistant"]
        assert said.split("<|eot|>")[:-1] == answers
        assert one.num_tokens >= len(one.spans)


def test_a_picture_is_shown_in_the_tiles_that_the_model_reads(tiny_data: Path):
    vision = VisionConfig(image_size=48, patch_size=12, dim=32, num_layers=1, num_heads=2, adapter_dim=32, max_tiles=4)
    processor = ImageProcessor(vision)
    reader = Reader(tokenizer=Tokenizer.load(tiny_data / "tokenizer"), processor=processor)
    row = max(tables.read(tiny_data, "pictures"), key=lambda row: max(read_picture(row["png"]).size))
    (shown,) = find(tiny_data, "pictures", Wanted(id=row["id"]), reader)
    tiles = processor.tiles(read_picture(row["png"]))
    assert len(shown.pictures) == len(tiles.pixels) > 1
    assert shown.num_tokens == len(processor.tokens(tiles))
    for picture, pixels in zip(shown.pictures, tiles.pixels, strict=True):
        assert picture.tobytes() == pixels.permute(1, 2, 0).numpy().tobytes()
    # A chat about a picture shows the same tiles, a clip each frame.
    for kind, table in (("image", "pictures"), ("video", "clips")):
        chats = [row for row in tables.read(tiny_data, "chats") if f'"type": "{kind}"' in row["messages"]]
        (chat,) = find(tiny_data, "chats", Wanted(id=chats[0]["id"]), reader)
        assert chat.pictures
        assert any(span.special and "<|patch|>" in span.text for span in chat.spans)
        assert next(find(tiny_data, table, Wanted(), reader)).pictures


def test_rows_are_chosen_by_their_columns_and_a_place(tiny_data: Path):
    reader = Reader(tokenizer=Tokenizer.load(tiny_data / "tokenizer"), processor=ImageProcessor(None))
    german = [row["id"] for row in tables.read(tiny_data, "text") if row["language"] == "de"]
    found = find(tiny_data, "text", Wanted(language="de"), reader, skip=1, num=2)
    assert [one.id for one in found] == german[1:3]


def test_a_document_commands_neither_the_terminal_nor_the_page(tmp_path: Path):
    text = "\x1b[2Jclear\x07 <script>alert(1)</script> [bold]no markup[/bold] \x9b31m"
    item = Shown(table="text", id="a\x1b]0;title\x07", facts={"source": text}, spans=[Span(text=text, learnt=True)])
    out = io.StringIO()
    show(Console(file=out, width=200), item, characters=500)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", out.getvalue())
    assert "[bold]no markup[/bold]" in out.getvalue()
    page = write_page(tmp_path / "page.html", "<b>", [item]).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>" not in page


def test_a_long_text_is_cut_in_the_terminal_and_says_so():
    shown = Shown(table="text", id="a", spans=[Span(text="word ")] * 100)
    assert str(tokens(shown, 50)) == "word " * 10 + " … (90 more tokens)"


def test_half_blocks_have_the_colours_of_the_picture():
    picture = Image.new("RGB", (64, 64), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 32, 64, 64))
    lines = half_blocks(picture).split("\n")
    assert len(lines[0]) == 32
    assert str(lines[0].spans[0].style) == "#ff0000 on #ff0000"
    assert str(lines[15].spans[0].style) == "#0000ff on #0000ff"


def test_the_figures_are_those_of_the_rows(tiny_data: Path):
    found = {table.title: table.as_json() for table in stats(tiny_data)}
    assert list(found) == tables_of(tiny_data) == ["text", "chats", "pictures", "clips"]
    rows = tables.read(tiny_data, "text")
    assert sum(row["bytes"] for row in found["text"]) == sum(len(row["text"].encode()) for row in rows)
    counts = Counter((row["language"], row["source"], row["split"]) for row in rows)
    assert {(row["language"], row["source"], row["split"]): row["documents"] for row in found["text"]} == counts
    chats = [json.loads(row["messages"]) for row in tables.read(tiny_data, "chats")]
    assert sum(row["chats"] for row in found["chats"]) == len(chats)
    pictured = sum('"image"' in json.dumps(messages) for messages in chats)
    assert sum(row["with pictures"] for row in found["chats"]) == pictured > 0
    sides = [max(read_picture(row["png"]).size) for row in tables.read(tiny_data, "pictures")]
    assert max(row["largest"] for row in found["pictures"]) == max(sides)


def test_the_commands_print_write_a_page_and_name_what_is_wrong(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["data", "show", str(tiny_data), "--num", "1"]) == 0
    assert "<|eot|>" in capsys.readouterr().out
    assert main(["data", "show", str(tiny_data), "--page", str(tmp_path / "p.html")]) == 0
    assert "data:image/png" in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert main(["data", "stats", str(tiny_data), "--json"]) == 0
    out: Any = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert out["text"][0]["documents"] > 0
    for arguments, words in (
        (["--table", "txet"], "did you mean 'text'"),
        (["--language", "tlh"], "no row like this"),
        (["--num", "0"], "num=0 must be 1 or more"),
    ):
        assert main(["data", "show", str(tiny_data), *arguments]) == 1
        assert words in capsys.readouterr().err
    assert main(["data", "show", str(tmp_path)]) == 1
    assert "has no table" in capsys.readouterr().err
    for command in ("show", "stats"):
        assert main(["data", command, "nothere"]) == 1
        assert "herd: nothere is not there: give a folder" in capsys.readouterr().err


def test_preferences_and_prompts_are_shown_with_what_would_be_learnt(tmp_path: Path):
    def message(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    asked = tables.to_json([message("user", "the cat?")])
    answers = {
        name: tables.to_json([message("assistant", text)]) for name, text in (("chosen", "mat"), ("rejected", "sat"))
    }
    common = {"id": "1", "split": "train", "source": "mine", "prompt": asked}
    tables.write(tmp_path / "preferences.parquet", [{**common, **answers, "tools": ""}], tables.PREFERENCES)
    tables.write(tmp_path / "prompts.parquet", [{**common, "answer": "mat", "verifier": ""}], tables.PROMPTS)
    reader = Reader(tokenizer=SMALL, processor=ImageProcessor(None))
    (preference,) = find(tmp_path, "preferences", Wanted(), reader)
    said = "".join(span.text for span in preference.spans if span.learnt)
    assert said == "mat<|eot|>sat<|eot|>"
    (prompt,) = find(tmp_path, "prompts", Wanted(), reader)
    assert not any(span.learnt for span in prompt.spans)
    assert prompt.facts["answer"] == "mat"
    assert [table.rows for table in stats(tmp_path)] == [[("mine", "train", 1)]] * 2
