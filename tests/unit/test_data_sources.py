"""Folders of the user's own: what each file is taken for, what of it is kept, and what is said about the rest."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from selectolax.lexbor import LexborHTMLParser

from herd.cli import main
from herd.config import CleaningConfig, DataConfig, TextSource
from herd.core.files import folder_hash, read_json
from herd.data.loading import tables
from herd.data.sources.detect import detect, sources_of
from herd.data.sources.source import MAX_ROW_CHARS, Notes
from herd.errors import HerdError
from herd.stages.data import build_data

SWITCHES = {field.name: False for field in fields(CleaningConfig) if field.type is bool}
SIZES: dict[str, Any] = {"min_bytes": 0, "max_symbol_share": 1.0, "boilerplate_documents": 0, "near_duplicates": 0.0}
OFF = replace(CleaningConfig(), **{**SWITCHES, **SIZES, "mojibake": True, "exact_duplicates": True})
"""Filters that drop mojibake and duplicates alone: what is tested here is reading."""
SEA = "The harbour was quiet when the ferry left for the islands."
GARDEN = "Der Garten hinter dem Haus gehört der Großmutter und ihren Bienen."


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


GOOD = turns(("user", "Where is the ferry?"), ("assistant", "In the harbour."))


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def arrow(*rows: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    table = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG")
    return out.getvalue()


def pdf() -> bytes:
    """A page that says "The harbour"."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>/MediaBox[0 0 200 200]>>",
        b"<</Length 41>>stream\nBT /F 12 Tf 20 100 Td (The harbour) Tj ET\nendstream",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(b"%010d 00000 n \n" % len(out))
        out += b"%d 0 obj" % number + body + b"endobj\n"
    table = b"xref\n0 6\n0000000000 65535 f \n" + b"".join(places)
    return out + table + b"trailer<</Root 1 0 R/Size 6>>\nstartxref\n%d\n%%%%EOF" % len(out)


def shows(picture: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "What is this?"}]
    return turns(("user", parts), ("assistant", "A red square."))


AWKWARD: dict[str, tuple[dict[str, bytes], list[str], list[str]]] = {
    "empty files": (
        {"a.txt": b"", "b.jsonl": b"\n\n", "c.txt": SEA.encode()},
        [SEA], ["1 empty files (mine/a.txt)", "1 empty files (mine/b.jsonl)"],
    ),
    "BOM, CR and CRLF": (
        {"a.txt": f"\ufeff{SEA}\r\nTwo\rThree".encode(), "b.jsonl": b"\xef\xbb\xbf" + jsonl({"text": GARDEN})},
        [f"{SEA}\nTwo\nThree", GARDEN], [],
    ),
    "latin-1 and mixed encodings": (
        {"a.txt": GARDEN.encode("latin-1"), "b.txt": f"{GARDEN} A\n".encode() + f"{GARDEN} “B”".encode("cp1252")},
        [GARDEN, f"{GARDEN} A\n{GARDEN} “B”"], ["changed 2 lines not in UTF-8", "b.txt line 2"],
    ),
    "UTF-16": (
        {"a.txt": GARDEN.encode("utf-16"), "b.txt": SEA.encode("utf-16-le"), "c.txt": f"{SEA} C".encode("utf-16-be")},
        [GARDEN, SEA, f"{SEA} C"], [],
    ),
    "mojibake": (
        {"a.txt": GARDEN.encode().decode("latin-1").encode(), "b.txt": SEA.encode()},
        [SEA], ["document: mojibake"],
    ),
    "a huge line": (
        {"a.jsonl.gz": gzip.compress(b'{"text": "' + b"x" * (MAX_ROW_CHARS + 9) + b'"}\n' + jsonl({"text": SEA}), 1)},
        [SEA], [f"1 lines of more than {MAX_ROW_CHARS:,} characters", "a.jsonl.gz line 1"],
    ),
    "nested JSON": (
        {
            "a.json": json.dumps({"version": 2, "data": [{"text": SEA}, {"text": GARDEN}]}, indent=1).encode(),
            "b.jsonl": jsonl({"text": f"{SEA} B"}, {"text": {"body": SEA}}, {"text": None}, [[1]]),
            "c.jsonl": b'{"text": ' + b"[" * 100_000 + b"\n" + jsonl({"text": f"{SEA} C"}),
        },
        [SEA, GARDEN, f"{SEA} B", f"{SEA} C"],
        ["2 rows whose text is none", "1 rows that are no JSON objects", "1 rows that are not JSON"],
    ),
    "texts that are missing": (
        {
            "a.jsonl": jsonl(
                {"text": None, "title": "Two words"}, {"text": SEA, "title": "Two words"}, {"title": "No text here"}
            )
        },
        [SEA], ["2 rows whose text is none"],
    ),
    "broken JSON": (
        {
            "a.jsonl": b'{"text": "no end\n' + jsonl({"text": SEA}),
            "b.json": b'[{"text": "' + GARDEN.encode() + b'"}, {"te',
        },
        [SEA, GARDEN], ["1 rows that are not JSON", "a.jsonl row 1", "1 files that are not JSON to their end"],
    ),
    "wrong columns beside good ones": (
        {"a.jsonl": jsonl({"text": SEA}), "b.jsonl": jsonl({"mesages": "Hi", "id": 3})},
        [SEA], ["1 files whose rows are of no known kind", "did you mean 'messages' by 'mesages'?"],
    ),
    "archives in archives": (
        {
            "a.zip": zipped(a=b"x"), "b.tar.gz": b"\x1f\x8b", "c.jsonl.gz": gzip.compress(gzip.compress(b"x")),
            "d.txt.gz": gzip.compress(zipped(a=b"x")), "e.txt": zipped(a=b"x"), "f.txt": SEA.encode(),
        },
        [SEA],
        ["2 archives: unpack them first", "archives in compressed files (gzip)", "archives in compressed files (zip)",
         "archives under the name of a text (zip)"],
    ),
    "a bomb": (
        {"a.txt.gz": gzip.compress(b"0" * 200_000_000, 9), "b.txt": SEA.encode()},
        [SEA], ["1 files that expand to more than"],
    ),
    "binaries named .txt": (
        {"a.txt": png(), "b.txt": bytes(range(256)) * 20, "c.txt": b"\x7fELF\2\1\1" + bytes(99), "d.txt": SEA.encode()},
        [SEA], ["3 binary files under the name of a text"],
    ),
    "only duplicates": (
        {f"{index}.txt": SEA.encode() for index in range(9)}, [SEA], ["8 document: exact duplicate"],
    ),
    "damaged compression": (
        {"a.txt.gz": gzip.compress(SEA.encode() * 99)[:-20], "b.jsonl.zst": b"not zstd", "c.txt": SEA.encode()},
        [SEA], ["1 files that are damaged, or unreadable", "b.jsonl.zst: ZSTD", "a.txt.gz: Compressed file ended"],
    ),
    "ragged tables": (
        {"a.csv": f'text,id\n"{SEA}",1\nno,id,2\n"{GARDEN}\n",3\n'.encode(), "b.csv": b'text\n"no end' + b"\nx" * 99},
        [SEA, GARDEN], ["1 rows with another number of columns", "row 3", "1 rows whose quote is not closed"],
    ),
    "what is not Parquet or Arrow": (
        {"a.parquet": b"PAR1 no", "b.arrow": b"ARROW1 no", "c.arrow": arrow({"text": SEA})},
        [SEA], ["1 files that are not Parquet", "1 files that are not Arrow"],
    ),
    "a datasets folder": (
        {
            "set/dataset_dict.json": b'{"splits": ["train", "test"]}', "set/train/state.json": b"{}",
            "set/train/dataset_info.json": b"{}", "set/train/data-00000-of-00001.arrow": arrow({"text": SEA}),
            "set/test/data-00000-of-00001.arrow": arrow({"text": GARDEN}),
        },
        [SEA], ["1 files of a `datasets` folder that are of other splits than train"],
    ),
    "chats in the wrong order": (
        {
            "a.jsonl": jsonl(
                GOOD,
                turns(("user", "Hi")),
                turns(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")),
                turns(("assistant", "Hello"), ("user", "Hi"), ("assistant", "Hello")),
                turns(("user", "Hi"), ("user", "Hello?"), ("assistant", "Hello")),
                turns(("user", "Hi"), ("system", "Be kind."), ("assistant", "Hello")),
                turns(("system", "Be kind.")),
            )
        },
        ["In the harbour."],
        ["2 chats that end with the user", "1 chats that begin with the assistant", "1 chats that repeat a role",
         "1 chats with a system message that is not the first", "1 chats with a system message alone"],
    ),
    "chats with unsound messages": (
        {
            "a.jsonl": jsonl(
                GOOD,
                turns(("user", "Hi"), ("assistant", " ")),
                turns(("user", "Hi"), ("asistant", "Hello")),
                {"messages": ["Hi", "Hello"]},
                {"messages": [{"role": "user", "content": "Hi"}, "Hello"]},
                {"messages": []},
                turns(("user", "Hi"), ("assistant", 3)),
                turns(("user", "Hi"), ("assistant", "HÃ¤nsel und GrÃ¤tel")),
                GOOD,
            )
        },
        ["In the harbour."],
        ["1 chats with an empty message", "did you mean 'assistant'?", "1 chats with a message that is no object",
         "2 chats without a message", "1 chats with a content that is neither text nor parts",
         "1 chats decoded with the wrong encoding", "1 chats that are there already"],
    ),
    "chats with unsound tools": (
        {
            "a.jsonl": jsonl(
                GOOD,
                turns(("user", "Hi"), ("tool", "4"), ("assistant", "Four")),
                {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "{no"},
                                   {"from": "observation", "value": "4"}, {"from": "gpt", "value": "Four"}]},
                {"conversations": [{"from": "human", "value": "Hi"},
                                   {"from": "function_call", "value": '{"name": "add", "arguments": [2]}'},
                                   {"from": "observation", "value": "4"}, {"from": "gpt", "value": "Four"}]},
                {**GOOD, "tools": "[3]"},
            )
        },
        ["In the harbour."],
        ["1 chats with a tool's result and no call before it", "1 chats with a tool call that is not JSON",
         "1 chats with arguments of a tool call that are no object", "1 chats with tools that are no list of objects"],
    ),
    "chats with pictures": (
        {
            "a.jsonl": jsonl(*map(shows, ("red.png", "none.png", "text.png", "https://example.org/a.png"))),
            "red.png": png(), "text.png": b"no picture",
        },
        ["A red square."],
        ["2 chats with a picture that cannot be read", "none.png does not exist",
         "1 chats with a picture at an address, which is not fetched", "2 files of a kind that is not read (.png)"],
    ),
}  # fmt: skip


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def recipe(folder: Path) -> str:
    """A recipe whose filters are OFF, and whose tokenizer is trained in no time."""
    values = {name: getattr(OFF, name) for name in vars(OFF) if name not in {"languages", "mask"}}
    lines = [f"{name} = {str(value).lower()}" for name, value in values.items()]
    path = folder / "off.toml"
    path.write_text("[data]\nvocab_size = 300\n[data.cleaning]\n" + "\n".join(lines) + "\n")
    return str(path)


def said_in(out: Path) -> list[str]:
    """The documents and the last answers of a data folder."""
    texts = [row["text"] for row in tables.read(out, "text", ["text"])] if tables.has(out, "text") else []
    chats = tables.read(out, "chats", ["messages"]) if tables.has(out, "chats") else []
    return texts + [json.loads(row["messages"])[-1]["content"] for row in chats]


@pytest.mark.parametrize(("files", "kept", "told"), AWKWARD.values(), ids=AWKWARD)
def test_an_awkward_folder_gives_what_is_sound_in_it_and_says_what_is_not(
    files: dict[str, bytes], kept: list[str], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write(tmp_path / "mine", files)
    monkeypatch.chdir(tmp_path)
    args = ["data", "build", "--from", "mine", "--out", "out", "--recipe", recipe(tmp_path)]
    code, printed = main(args), capsys.readouterr()
    assert code == 0, printed.err
    assert sorted(said_in(tmp_path / "out")) == sorted(kept)
    assert [line for line in told if line not in printed.out] == [], printed.out
    assert "Traceback" not in printed.err
    lines, page = card_lines(tmp_path / "out"), LexborHTMLParser((tmp_path / "out" / "card.html").read_text())
    assert [line for line in told if line not in lines] == [], lines
    shown = page.body.text() if page.body else ""
    assert [place for place in re.findall(r"mine/[\w.]+", lines) if place not in shown] == []


def card_lines(out: Path) -> str:
    """What the data card has of files, rows and documents that were not used."""
    card = read_json(out / "herd.json")["card"]
    lines = [f"{count} {reason}" for reason, count in card.get("cleaning", {}).get("dropped", {}).items()]
    for notes in (*card["sources"], card["unread"]):
        for what in ("skipped", "changed"):
            for reason, of in notes.get(what, {}).items():
                lines.append(f"{what} {of['count']:,} {reason} ({'; '.join(of['places'])})")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.jsonl": jsonl({"mesages": "Hi", "id": 3})}, "row 1: no text, chat, preference or prompt in the columns"),
        ({"a.txt": b""}, "no text is left of 0 documents"),
        ({"a.txt": b"\0\1\2" * 99}, "no text is left of 0 documents"),
        ({"a.jsonl": jsonl(turns(("user", "Hi")))}, "no chat is left of mine: skipped 1 chats that end with the user"),
        ({"a.jsonl": b"[3]\n"}, "mine: there is no row in it to read (skipped 1 rows that are no JSON objects"),
        ({"a.bin": b"x"}, r"mine: nothing in it is read (files of a kind that is not read (.bin)"),
        ({".hidden.txt": b"x"}, "mine: it has no file"),
    ],
)
def test_a_folder_with_nothing_sound_is_one_line(
    files: dict[str, bytes],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path / "mine", files)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "build", "--from", "mine", "--out", "out", "--recipe", recipe(tmp_path)]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("herd: ")]
    assert told in line
    assert "bug" not in line
    assert not (tmp_path / "out").exists()


def build(folder: Path, out: Path, **options: Any) -> Path:
    """A data folder of what is found in `folder`."""
    found = sources_of(detect([str(folder)], Notes()))
    return build_data(DataConfig(**found, cleaning=OFF, vocab_size=300, **options), out)


def test_a_source_that_changes_while_it_is_read_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write(tmp_path / "mine", {f"{index}.txt": f"{SEA} {index}".encode() for index in range(4)})
    from herd.data.sources import readers

    read = readers.READERS[".txt"]

    def append(path: Path, *others: Any) -> Any:
        yield from read(path, *others)
        if path.name == "2.txt":
            path.write_text("another text")

    monkeypatch.setitem(readers.READERS, ".txt", append)
    with pytest.raises(HerdError, match=r"2\.txt has changed since the run began \(60 bytes then, 12 now\)"):
        build(mine, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_named_and_leaves_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write(tmp_path / "mine", {"a.txt": SEA.encode()})

    def full(*_: Any, **__: Any) -> None:
        raise pyarrow.ArrowIOError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device")

    monkeypatch.setattr(parquet.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        build(mine, tmp_path / "out")
    assert "text.unsplit.parquet" in str(error.value.filename)
    assert not list((tmp_path / "out.partial").glob("text*"))


def test_a_killed_build_resumes_with_the_same_counts_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write(
        tmp_path / "mine",
        {"a.txt": f"{SEA}\n{GARDEN}".encode(), "b.txt": b"", "c.jsonl": jsonl(GOOD, turns(("user", "Hi")))},
    )
    whole = build(mine, tmp_path / "whole")
    import herd.stages.data as stage

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setitem(stage.STEPS, "tokenizer", killed)
        with pytest.raises(Killed):
            build(mine, tmp_path / "out")
    with monkeypatch.context() as patch:
        for done in ("text", "own chats", "chats"):
            patch.setitem(stage.STEPS, done, killed)
        resumed = build(mine, tmp_path / "out")
    assert folder_hash(resumed) == folder_hash(whole)
    assert read_json(resumed / "herd.json")["card"] == read_json(whole / "herd.json")["card"]


def test_steps_are_done_again_where_a_file_has_another_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write(tmp_path / "mine", {"a.txt": SEA.encode()})
    import herd.stages.data as stage

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setitem(stage.STEPS, "tokenizer", killed)
        with pytest.raises(Killed):
            build(mine, tmp_path / "out")
    write(mine, {"a.txt": GARDEN.encode()})
    assert said_in(build(mine, tmp_path / "out")) == [GARDEN]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (GOOD, GOOD["messages"]),
        (
            {"system": "No.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            turns(("system", "No."), ("user", "Hi"), ("assistant", "Hello"))["messages"],
        ),
        (
            {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day", "history": [["A", "B"]]},
            turns(("user", "A"), ("assistant", "B"), ("user", "Translate.\n\nGuten Tag"), ("assistant", "Good day"))[
                "messages"
            ],
        ),
        ({"prompt": "Hi", "completion": "Hello"}, turns(("user", "Hi"), ("assistant", "Hello"))["messages"]),
        (
            {"prompt": turns(("system", "Short."), ("user", "Hi"))["messages"], "completion": [
                {"role": "assistant", "content": "Hello"}
            ]},
            turns(("system", "Short."), ("user", "Hi"), ("assistant", "Hello"))["messages"],
        ),
    ],
)  # fmt: skip
def test_each_chat_format_is_told_by_its_columns(row: Any, messages: Any, tmp_path: Path) -> None:
    for name, data in (("a.jsonl", jsonl(row)), ("b.json", json.dumps([row]).encode())):
        built = build(write(tmp_path / name, {name: data}), tmp_path / f"{name}.out")
        [kept] = tables.read(built, "chats")
        assert json.loads(kept["messages"]) == messages
    table = pyarrow.Table.from_pylist([row])
    (tmp_path / "p").mkdir()
    parquet.write_table(table, tmp_path / "p" / "c.parquet")
    [kept] = tables.read(build(tmp_path / "p", tmp_path / "p.out"), "chats")
    assert json.loads(kept["messages"]) == messages


def test_calls_results_and_tools_of_both_formats_are_the_same_chat(tmp_path: Path) -> None:
    add = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    openai = {
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
            ]},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "Four."},
        ],
        "tools": [{"type": "function", "function": add}],
    }  # fmt: skip
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "2 + 2?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "Four."},
        ],
        "tools": json.dumps([add]),
    }
    built = [
        tables.read(build(write(tmp_path / name, {"a.jsonl": jsonl(row)}), tmp_path / f"{name}.out"), "chats")[0]
        for name, row in (("openai", openai), ("sharegpt", sharegpt))
    ]
    assert [row["id"] for row in built] == [built[0]["id"]] * 2
    assert json.loads(built[0]["tools"])[0]["function"] == add


def test_preferences_in_every_form_of_trl_are_the_same_rows(tmp_path: Path) -> None:
    user, good, bad = ({"role": "user", "content": "Hi"}, *({"role": "assistant", "content": t} for t in ("Yes", "No")))
    rows = [
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"prompt": "Hi", "chosen": [user, good], "rejected": [user, bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"},
    ]
    built = build(write(tmp_path / "mine", {"a.jsonl": jsonl(*rows), "b.txt": SEA.encode()}), tmp_path / "out")
    kept = tables.read(built, "preferences", ["prompt", "chosen", "rejected"])
    assert [{key: json.loads(value) for key, value in row.items()} for row in kept] == [
        {"prompt": [user], "chosen": [good], "rejected": [bad]}
    ] * 5


def test_prompts_have_their_answers_and_rules(tmp_path: Path) -> None:
    rows = [
        {"question": "2 + 2?", "answer": "Two and two.\n#### 4"},
        {"prompt": [{"role": "user", "content": "A haiku."}], "verifier": "mine:is_haiku"},
        {"problem": "1 + 1?", "answer": 2, "rules": {"kind": "integer"}},
        {"question": "Why?", "answer": ""},
    ]
    built = build(write(tmp_path / "mine", {"a.jsonl": jsonl(*rows), "b.txt": SEA.encode()}), tmp_path / "out")
    kept = [(row["answer"], row["verifier"]) for row in tables.read(built, "prompts")]
    assert kept == [("4", ""), ("", "mine:is_haiku"), ("2", '{"kind": "integer"}')]


def test_one_long_text_is_cut_so_that_a_part_of_it_is_held_out(tmp_path: Path) -> None:
    text = "\n".join(f"{index}: {SEA}" for index in range(800))
    built = build(write(tmp_path / "mine", {"a.txt": text.encode()}), tmp_path / "out")
    rows = tables.read(built, "text", ["split", "text", "repeat"])
    sizes = {split: sum(len(row["text"]) for row in rows if row["split"] == split) for split in ("train", "heldout")}
    assert 0 < sizes["heldout"] <= 0.3 * len(text)
    assert sorted(line for row in rows for line in row["text"].split("\n")) == sorted(text.split("\n"))
    assert {row["repeat"] for row in rows} == {1}


def test_rows_of_code_outside_are_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_rows.py").write_text(
        f"def letters():\n    yield {SEA!r}\n    yield {{'text': {GARDEN!r}}}\n    yield 3\nlist_of = [{SEA!r}]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    built = build_data(
        DataConfig(text=(TextSource(path="mine_rows:letters", licence="mine"),), cleaning=OFF, vocab_size=300),
        tmp_path / "out",
    )
    assert sorted(said_in(built)) == sorted([SEA, GARDEN])
    [source] = read_json(built / "herd.json")["card"]["sources"]
    assert (source["licence"], source["rows"]) == ("mine", {"train": 2})
    assert source["skipped"]["rows that are neither dictionaries nor texts"]["count"] == 1
    with pytest.raises(HerdError, match="did you mean 'letters'"):
        detect(["mine_rows:leters"], Notes())


def test_a_recipe_lists_sources_with_columns_weights_and_patterns(tmp_path: Path) -> None:
    write(tmp_path / "corpus", {"a/x.jsonl.gz": gzip.compress(jsonl({"page": {"body": SEA}, "text": "no"}))})
    (tmp_path / "own.toml").write_text(
        Path(recipe(tmp_path)).read_text()
        + f'[[data.text]]\npath = "{tmp_path}/corpus/**/*.jsonl.gz"\ntext = "page.body"\nname = "mine"\n'
        + 'weight = 2\nmax_epochs = 3\nlanguage = "en"\n'
    )
    assert main(["data", "build", "--recipe", str(tmp_path / "own.toml"), "--out", str(tmp_path / "out")]) == 0
    assert said_in(tmp_path / "out") == [SEA]
    settings = read_json(tmp_path / "out" / "sources.json")
    assert settings == {"mine": {"weight": 2.0, "max_epochs": 3.0, "licence": ""}}
    assert tables.read(tmp_path / "out", "text", ["source", "language"]) == [{"source": "mine", "language": "en"}]


def test_a_pdf_and_a_crawl_are_read(tmp_path: Path) -> None:
    warc = pytest.importorskip("warcio.warcwriter")
    pytest.importorskip("pypdf")
    from warcio.statusandheaders import StatusAndHeaders

    mine = write(tmp_path / "mine", {"a.pdf": pdf(), "b.pdf": b"%PDF-1.4 no", "c.warc": b"no warc"})
    with (mine / "d.warc.gz").open("wb") as file:
        writer = warc.WARCWriter(file, gzip=True)
        for status, kind in (
            ("200 OK", "text/html; charset=latin-1"),
            ("404 Not Found", "text/html"),
            ("200 OK", "a/b"),
        ):
            page = f"<html><body><nav>Home</nav><p>{GARDEN}</p></body></html>".encode("latin-1")
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                "http://example.org/", "response", payload=io.BytesIO(page), http_headers=headers
            )
            writer.write_record(record)
    built = build(mine, tmp_path / "out")
    assert sorted(said_in(built)) == sorted(["The harbour", GARDEN])
    card = read_json(built / "herd.json")["card"]
    skipped = {reason for source in card["sources"] for reason in source.get("skipped", {})}
    assert skipped == {"damaged PDFs", "files that are not WARC"}


@pytest.mark.slow
def test_a_line_of_two_gigabytes_is_passed_over_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write(b"x" * 10_000)
        file.seek(2 * 2**30)
        file.write(b"\n" + SEA.encode())
    code = (
        "import resource; from pathlib import Path; from herd.data.sources.readers import *\n"
        "notes = Notes(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"rows = list(read_file(Path({str(path)!r}), ReadOptions(), notes))\n"
        "print(len(rows), rows[0].values['text'], sum(notes.skipped.values()))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    read, grown = done.stdout.splitlines()
    assert read == f"1 {SEA} 1"
    assert int(grown) < 300_000  # kilobytes


def test_files_are_looked_at_without_torch_and_only_the_first_of_many(tmp_path: Path) -> None:
    write(tmp_path / "mine", {f"{index:03}.jsonl": jsonl({"text": SEA}) for index in range(60)})
    code = (
        "import sys; from herd.data.sources.detect import detect; from herd.data.sources import detect as module\n"
        "from herd.data.sources.source import Notes\n"
        "read, opened = module.read_file, []\n"
        "module.read_file = lambda path, *others: (opened.append(path), read(path, *others))[1]\n"
        f"[found] = detect([{str(tmp_path / 'mine')!r}], Notes())\n"
        "print(found.kind, len(found.files), len(opened), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.split() == ["text", "60", "20", "False"]
