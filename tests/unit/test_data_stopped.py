"""Builds of own files that stop: a file that changes, a full disk, a kill, and what is done again."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from own_files import GARDEN, GOOD, SEA, build, jsonl, said_in, turns, write

from herd.core.files import folder_hash, read_json
from herd.errors import HerdError


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
