"""Awkward folders of the user's own: what of them is kept, and what the terminal and the data card have of the rest."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from own_files import (
    GARDEN,
    GOOD,
    SEA,
    arrow,
    jsonl,
    png,
    recipe,
    said_in,
    shows,
    turns,
    write,
    zipped,
)
from selectolax.lexbor import LexborHTMLParser

from herd.cli import main
from herd.core.files import read_json
from herd.data.sources.source import MAX_ROW_CHARS

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
        {f"{index}.txt": SEA.encode() for index in range(9)}, [SEA], ["8 documents: exact duplicate"],
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


@pytest.mark.parametrize(("files", "kept", "expected"), AWKWARD.values(), ids=AWKWARD)
def test_an_awkward_folder_gives_what_is_sound_in_it_and_counts_what_is_not(
    files: dict[str, bytes], kept: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write(tmp_path / "mine", files)
    monkeypatch.chdir(tmp_path)
    args = ["data", "build", "--from", "mine", "--out", "out", "--recipe", recipe(tmp_path)]
    code, printed = main(args), capsys.readouterr()
    assert code == 0, printed.err
    assert sorted(said_in(tmp_path / "out")) == sorted(kept)
    assert [line for line in expected if line not in printed.out] == [], printed.out
    assert "Traceback" not in printed.err
    lines, page = card_lines(tmp_path / "out"), LexborHTMLParser((tmp_path / "out" / "card.html").read_text())
    assert [line for line in expected if line not in lines] == [], lines
    shown = page.body.text() if page.body else ""
    assert [place for place in re.findall(r"mine/[\w.]+", lines) if place not in shown] == []


def card_lines(out: Path) -> str:
    """What the data card has of files, rows and documents that were not used."""
    card = read_json(out / "herd.json")["card"]
    dropped = card.get("cleaning", {}).get("dropped", {})
    lines = [
        f"{count} {reason if count == 1 else reason.replace('document:', 'documents:')}"
        for reason, count in dropped.items()
    ]
    for notes in (*card["sources"], card["unread"]):
        for what in ("skipped", "changed"):
            for reason, of in notes.get(what, {}).items():
                lines.append(f"{what} {of['count']:,} {reason} ({'; '.join(of['places'])})")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("files", "expected"),
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
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path / "mine", files)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "build", "--from", "mine", "--out", "out", "--recipe", recipe(tmp_path)]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("herd: ")]
    assert expected in line
    assert "bug" not in line
    assert not (tmp_path / "out").exists()


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
