"""Cleaning and tokenising give the same bytes with any number of workers and after any kill."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from killing import Killing

import herd.data.sources.clean as clean_stage
from herd.config import CleaningConfig, DataConfig
from herd.config.sources import TextSource
from herd.core import workers as core_workers
from herd.core.files import folder_hash, read_json
from herd.core.workers import Workers
from herd.data.sources.clean import clean_files
from herd.data.sources.readers import files_of
from herd.data.sources.source import Notes
from herd.data.text.dedup import deduplicate_parts
from herd.data.text.documents import Document
from herd.data.text.report import Report
from herd.errors import HerdError
from herd.stages.data import build_data

SENTENCES = (
    "The old river runs through the town and past the market, where people buy bread.",
    "In winter the boats stay in the harbour, and their owners mend the nets that were torn.",
    "A teacher who had lived there for forty years wrote a short history of the place.",
    "It begins with the bridge, of which only two pillars are left, and ends with the fire.",
    "Those who have read it say that its best page is a list of names of all the children.",
    "Der alte Fluss läuft durch die Stadt und am Markt vorbei, wo die Leute Brot kaufen.",
)

LEAKED = "Which of the two pillars of the old bridge was built before the great fire of the mill?"


def write_corpus(folder: Path, *, files: int = 6, rows: int = 12) -> Path:
    """Small files with duplicates across them, a line that all share, an empty text and a broken row."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    shared: list[str] = []
    for number in range(files):
        lines = []
        for row in range(rows):
            text = [" ".join(rng.choices(SENTENCES, k=2)) + f" {rng.random()}." for _ in range(8)]
            text = rng.choice(shared).split("\n") if shared and rng.random() < 0.2 else text
            shared.append("\n".join(text))
            text = (
                [*text, f"Question {number}: {LEAKED}"]
                if row == 6
                else [*text, str(rng.random())]
                if row == 8
                else text
            )
            text = [*text, "This page was printed from the archive of the town."]
            lines.append(json.dumps({"text": "" if row == 3 else "\n".join(text)}))
        lines.insert(2, "{")
        (folder / f"part-{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


CONFIG = CleaningConfig(
    boilerplate_documents=4,
    gopher_words=False,
    gopher_duplicate_ngrams=False,
    gopher_top_ngrams=False,
    gopher_duplicate_lines=False,
)
SMALL = {"part_bytes": 10_000, "segment_bytes": 5_000}


def cleaned(corpus: Path, folder: Path, workers: Workers = Workers()) -> tuple[list[Any], dict[str, Any], Notes]:  # noqa: B008
    """Documents, what the report has, and the notes on the files."""
    folder.mkdir(exist_ok=True)
    report, notes, source = Report(), {"web": Notes()}, TextSource(path=str(corpus), name="web")
    files = files_of(source.path, notes["web"])
    parts = clean_files(
        [(source, files)],
        CONFIG,
        report,
        notes,
        evaluation={"exam": [LEAKED]},
        folder=folder,
        workers=workers,
        **SMALL,
    )
    return list(deduplicate_parts(parts, CONFIG, report)), report.as_json(), notes["web"]


def test_two_workers_clean_to_the_same_documents_report_and_notes(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    alone = cleaned(corpus, tmp_path / "one")
    documents, report, notes = alone
    assert len(list((tmp_path / "one").glob("*-filtered"))) > 6
    assert report["dropped"]["line: boilerplate"] > 50 and report["dropped"]["document: contaminated"] == 6
    assert report["dropped"]["document: near duplicate"] and report["dropped"]["document: exact duplicate"]
    assert notes.skipped.total() == 12 and len(documents) > 20
    assert cleaned(corpus, tmp_path / "two", Workers(number=2)) == alone


def test_a_killed_worker_is_replaced_and_its_part_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, flags = write_corpus(tmp_path / "corpus"), tmp_path / "flags"
    flags.mkdir()
    monkeypatch.setattr(clean_stage, "evaluation_index", lambda *_: Killing(flags, times=0))
    alone = cleaned(corpus, tmp_path / "one")
    monkeypatch.setattr(clean_stage, "evaluation_index", lambda *_: Killing(flags, times=1))
    assert cleaned(corpus, tmp_path / "two", Workers(number=2)) == alone
    assert (flags / "0").exists()


def test_a_part_that_kills_its_workers_again_and_again_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, flags = write_corpus(tmp_path / "corpus", files=1), tmp_path / "flags"
    flags.mkdir()
    monkeypatch.setattr(clean_stage, "evaluation_index", lambda *_: Killing(flags, times=50))
    monkeypatch.setattr(core_workers, "TRIES", 1)
    with pytest.raises(HerdError, match=r"the documents of .* was ended 1 times"):
        cleaned(corpus, tmp_path / "two", Workers(number=2))


def test_a_killed_run_goes_on_with_the_parts_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    alone = cleaned(corpus, tmp_path / "one")
    for name in ("_read", "_filter"):
        done, function = list[str](), getattr(clean_stage, name)

        def fails_late(shared: Any, item: Any, done: list[str] = done, function: Any = function) -> None:
            if len(done) == 3:
                raise KeyboardInterrupt
            done.append(str(item))
            function(shared, item)

        with monkeypatch.context() as patch:
            patch.setattr(clean_stage, name, fails_late)
            with pytest.raises(KeyboardInterrupt):
                cleaned(corpus, tmp_path / name)
        again: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(clean_stage, name, lambda *args, f=function, a=again: (a.append(str(args[1])), f(*args)))
            assert cleaned(corpus, tmp_path / name) == alone
        assert again and not set(again) & set(done)


def test_an_error_in_a_worker_is_the_one_line_that_it_is_without_workers(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "part-3.jsonl").write_text('{"txt": 1}\n')
    for workers in (Workers(), Workers(number=2)):
        with pytest.raises(HerdError, match=r"part-3.jsonl row 1: no text in the columns txt"):
            cleaned(corpus, tmp_path / str(workers.number), workers)


def build(corpus: Path, out: Path, **how: Any) -> tuple[str, dict[str, Any]]:
    config = DataConfig(
        text=(TextSource(path=str(corpus)),), cleaning=CONFIG, vocab_size=300, heldout_bytes=2000, **how
    )
    written = build_data(config, out)
    return folder_hash(written), read_json(written / "herd.json")["card"]


def test_a_data_folder_has_the_same_bytes_with_two_workers(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    assert build(corpus, tmp_path / "two", workers=2) == build(corpus, tmp_path / "one")


@pytest.mark.slow
def test_a_data_folder_has_the_same_bytes_with_eight_workers_and_by_ray(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    corpus = write_corpus(tmp_path / "corpus", files=30)
    alone = build(corpus, tmp_path / "one")
    assert build(corpus, tmp_path / "eight", workers=8) == alone
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert build(corpus, tmp_path / "ray", on="ray") == alone
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_worker_of_ray_that_is_killed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}")
    corpus, flags = write_corpus(tmp_path / "corpus"), tmp_path / "flags"
    flags.mkdir()
    monkeypatch.setattr(clean_stage, "evaluation_index", lambda *_: Killing(flags, times=0))
    alone = cleaned(corpus, tmp_path / "one")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        monkeypatch.setattr(clean_stage, "evaluation_index", lambda *_: Killing(flags, times=1))
        assert cleaned(corpus, tmp_path / "two", Workers(ray=True)) == alone
        assert (flags / "0").exists()
        monkeypatch.setattr(clean_stage, "evaluation_index", lambda *_: Killing(flags, times=50))
        with pytest.raises(HerdError, match=r"was ended 3 times"):
            cleaned(corpus, tmp_path / "three", Workers(ray=True))
    finally:
        ray.shutdown()


def test_notes_are_json_and_give_back_what_was_counted() -> None:
    report, notes = Report(), Notes()
    documents = [Document(language="en", source=f"s{n % 2}", page="page", text=f"text {n} " * 30) for n in range(6)]
    for one in documents[:4]:
        report.count("read", one)
        report.drop("document: short", one.text, one)
    report.keep(documents[4])
    report.cluster_sizes[3] += 2
    report.masked["email"] += 1
    notes.skip("empty file", "a.txt")
    notes.change("cut", "b.txt", "line 3")
    assert Report.from_note(json.loads(json.dumps(vars(report)))) == report
    assert Notes.from_note(json.loads(json.dumps(vars(notes)))) == notes
