"""herd.core.files: a write is whole or absent, and a folder's hash identifies its contents."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.files import (
    commit_folder,
    folder_hash,
    lock_folder,
    read_json,
    sha256,
    work_folder,
    write_atomic,
    write_json,
)
from herd.errors import HerdError, unknown

KILLED_AFTER = """
import os, shutil, signal
from pathlib import Path
from herd.core.files import commit_folder, write_atomic

real = os.{call}

def once(*args, **kwargs):
    real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

os.{call} = once
{code}
"""


def killed_after(call: str, code: str, folder: Path) -> bool:
    """Run `code` in `folder` in a process that is killed after its first `os.CALL`; whether it came to that."""
    run = subprocess.run([sys.executable, "-c", KILLED_AFTER.format(call=call, code=code)], cwd=folder)
    assert run.returncode in {0, -signal.SIGKILL}
    return run.returncode != 0


@pytest.mark.parametrize("call", ["fdopen", "fsync", "chmod"])
def test_a_write_killed_in_the_middle_leaves_the_old_file(tmp_path: Path, call: str):
    path = tmp_path / "notes.json"
    write_atomic(path, "old")
    assert killed_after(call, "write_atomic(Path('notes.json'), 'new' * 100_000)", tmp_path)
    assert path.read_text() == "old"
    write_atomic(path, "newer")
    assert path.read_text() == "newer"


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "notes.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_is_readable_by_others(tmp_path: Path):
    write_atomic(tmp_path / "notes.json", b"\x00\xff")
    assert (tmp_path / "notes.json").read_bytes() == b"\x00\xff"
    assert (tmp_path / "notes.json").stat().st_mode & 0o777 == 0o644


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_json_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, value: object):
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_broken_json_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(HerdError, match=r"config\.json is not valid JSON"):
        read_json(tmp_path / "config.json")


def test_missing_json_is_named_with_its_folder(tmp_path: Path):
    with pytest.raises(HerdError, match=rf"herd\.json is missing: is {tmp_path} a complete folder"):
        read_json(tmp_path / "herd.json")


def finished(folder: Path, **files: str) -> None:
    work_folder(folder).mkdir()
    for name, content in files.items():
        (work_folder(folder) / name).write_text(content)
    (work_folder(folder) / "herd.json").write_text("{}")


def test_a_committed_folder_leaves_the_older_one_under_a_free_name(tmp_path: Path):
    work_folder(tmp_path / "model.2").mkdir()
    kept = []
    for content in "first", "second", "third":
        finished(tmp_path / "model", weights=content)
        kept += [commit_folder(tmp_path / "model")]
        assert (tmp_path / "model" / "weights").read_text() == content
    assert kept == [None, tmp_path / "model.1", tmp_path / "model.3"]
    assert [(path / "weights").read_text() for path in kept[1:]] == ["first", "second"]


def test_a_folder_without_lineage_is_never_committed(tmp_path: Path):
    work_folder(tmp_path / "model").mkdir()
    with pytest.raises(AssertionError):
        commit_folder(tmp_path / "model")


@pytest.mark.parametrize("call", ["rename", "mkdir"])
def test_a_commit_killed_in_the_middle_leaves_no_torn_folder(tmp_path: Path, call: str):
    finished(tmp_path / "model", weights="first", tokenizer="first")
    commit_folder(tmp_path / "model")
    finished(tmp_path / "model", weights="second", tokenizer="second")
    killed_after(call, "commit_folder(Path('model'))", tmp_path)
    if (tmp_path / "model").exists():
        names = {path.name for path in (tmp_path / "model").iterdir()}
        assert names == {"weights", "tokenizer", "herd.json"}
        assert (tmp_path / "model" / "weights").read_text() == (tmp_path / "model" / "tokenizer").read_text()
    else:
        assert (work_folder(tmp_path / "model") / "herd.json").exists()
    if work_folder(tmp_path / "model").exists():
        commit_folder(tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_text() == "second"


def test_the_hash_of_a_folder_covers_names_and_contents_and_not_order_or_lineage(tmp_path: Path):
    def make(name: str, *files: tuple[str, str]) -> str:
        (tmp_path / name).mkdir()
        for file, content in files:
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).write_text(content)
        return folder_hash(tmp_path / name)

    whole = make("whole", ("a", "1"), ("b", "2"))
    assert make("order", ("b", "2"), ("a", "1")) == whole
    beside = [("herd.json", "{}"), ("metrics.jsonl", "3"), (".clock", "4")]
    assert make("beside", ("a", "1"), ("b", "2"), *beside) == whole
    others = {
        make("content", ("a", "1"), ("b", "3")),
        make("name", ("a", "1"), ("c", "2")),
        make("swapped", ("a", "2"), ("b", "1")),
        make("fewer", ("a", "1")),
        make("deeper", ("a", "1"), ("b", "2"), ("in/c", "3")),
        make("deeper changed", ("a", "1"), ("b", "2"), ("in/c", "4")),
    }
    assert len(others | {whole}) == 7


def test_sha256_equals_the_tool_of_the_system(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"herd" * 10_000)
    reported = subprocess.run(["sha256sum", "file"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert sha256(tmp_path / "file") == reported.split()[0]


def test_a_misspelt_name_is_reported_with_the_nearest_one():
    known = ["sft", "pretrain"]
    assert str(unknown("stage", "pretrian", known)) == "unknown stage 'pretrian', did you mean 'pretrain'?"
    assert str(unknown("stage", "xyz", known)) == "unknown stage 'xyz', known: pretrain, sft"


def test_two_never_work_in_one_folder(tmp_path: Path):
    work = tmp_path / "out.partial"
    with lock_folder(work):
        imports = "from pathlib import Path; from herd.core.files import lock_folder"
        other = f"{imports}\nwith lock_folder(Path({str(work)!r})): pass"
        second = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
        assert second.returncode != 0
        assert f"another herd works in {work}" in second.stderr
        work.rename(tmp_path / "out")
    with lock_folder(tmp_path / "out"):
        pass
