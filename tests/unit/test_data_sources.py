"""Sources of text: what a file is found to be, how it is cut and read, a recipe's list and code from outside."""

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from own_files import (
    GARDEN,
    OFF,
    SEA,
    build,
    jsonl,
    pdf,
    recipe,
    said_in,
    write,
)

from herd.cli import main
from herd.config import DataConfig, TextSource
from herd.core.files import read_json
from herd.data.loading import tables
from herd.data.sources.detect import detect
from herd.data.sources.source import Notes
from herd.errors import HerdError
from herd.stages.data import build_data


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
