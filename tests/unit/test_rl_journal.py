"""herd.rl.journal: what was appended is there, whatever ends the process."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_groups import group, rollout

from herd.errors import HerdError
from herd.rl.journal import Admitted, Dropped, Entry, Finished, Journal, Picked, Published, Saved
from herd.rl.record import Group, Rollout, Span
from herd.rl.record_bytes import ARRAYS

FLOATS = st.floats(allow_nan=False)
TEXTS = st.text(max_size=8)
NUMBERS = st.integers(0, 2**63 - 1)


@st.composite
def rollouts(draw: Any, member: int) -> Rollout:
    size = draw(st.integers(0, 5))
    tokens = st.lists(st.integers(0, 2**32 - 1), min_size=size, max_size=size)
    return Rollout(
        member=member,
        seed=draw(NUMBERS),
        attempt=draw(st.integers(0, 3)),
        prompt=np.array(draw(st.lists(st.integers(0, 2**32 - 1), max_size=5)), np.uint32),
        ids=np.array(draw(tokens), np.uint32),
        drawn=np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool),
        logprobs=np.array(draw(st.lists(st.floats(width=32), min_size=size, max_size=size)), np.float32),
        spans=tuple(Span(begin=0, version=version) for version in draw(st.lists(NUMBERS, max_size=2))),
        finish=draw(st.sampled_from(["stop", "length"])),
        text=draw(TEXTS),
        reward=draw(FLOATS),
        parts=draw(st.dictionaries(TEXTS, FLOATS, max_size=2)),
        env_s=draw(FLOATS),
    )


@st.composite
def histories(draw: Any) -> list[Entry]:
    """Entries that contradict nothing before them."""
    entries: list[Entry] = []
    waiting: list[Admitted] = []
    ready: list[int] = []
    for place in range(draw(st.integers(0, 12))):
        kinds = ["admit", "publish", "save", "pick"] + ["finish", "drop"] * bool(waiting) + ["drop ready"] * bool(ready)
        match draw(st.sampled_from(kinds)):
            case "admit":
                numbers = {name: draw(NUMBERS) for name in ("wave", "index", "seed", "version")}
                waiting.append(Admitted(ordinal=place, environment=draw(TEXTS), cell=draw(TEXTS), **numbers))
                entries.append(waiting[-1])
            case "finish":
                one = waiting.pop(draw(st.integers(0, len(waiting) - 1)))
                found = tuple(draw(rollouts(member)) for member in range(draw(st.integers(0, 2))))
                of = {"environment": one.environment, "cell": one.cell, "index": one.index}
                entries.append(Finished(Group(ordinal=one.ordinal, rollouts=found, **of)))
                ready.append(one.ordinal)
            case "drop":
                entries.append(Dropped(waiting.pop().ordinal, draw(TEXTS)))
            case "drop ready":
                entries.append(Dropped(ready.pop(), draw(TEXTS)))
            case "pick":
                entries.append(Picked(place, tuple(ready)))
                ready = []
            case "publish":
                entries.append(Published(place, draw(TEXTS)))
            case "save":
                entries.append(Saved(draw(NUMBERS)))
    return entries


def plain(one: Any) -> Any:
    """A group or rollout as nested values that can be compared, bits of floats included."""
    if isinstance(one, np.ndarray):
        return str(one.dtype), one.tobytes()
    if isinstance(one, tuple):
        return tuple(map(plain, one))
    return {key: plain(value) for key, value in vars(one).items()} if isinstance(one, Group | Rollout) else one


def assert_has(journal: Journal, entries: list[Entry]) -> None:
    """The journal has exactly what these entries say."""
    of = {kind: [one for one in entries if isinstance(one, kind)] for kind in (Admitted, Finished, Dropped, Picked)}
    assert journal.admitted == {one.ordinal: one for one in of[Admitted]}
    assert journal.dropped == {one.ordinal: one.why for one in of[Dropped]}
    assert list(journal.picked.items()) == [(one.step, one.ordinals) for one in of[Picked]]
    assert journal.published == {one.version: one.digest for one in entries if isinstance(one, Published)}
    assert journal.saved == next((one.step for one in reversed(entries) if isinstance(one, Saved)), None)
    assert list(journal.finished) == [one.group.ordinal for one in of[Finished]]
    for one in of[Finished]:
        assert plain(journal.group(one.group.ordinal)) == plain(one.group)


def write(path: Path, entries: list[Entry]) -> list[int]:
    """Write a journal; returns its size after each entry."""
    journal, sizes = Journal(path), []
    for entry in entries:
        journal.append(entry)
        sizes.append(path.stat().st_size)
    journal.close()
    return sizes


def opened(path: Path, entries: list[Entry], **how: Any) -> None:
    """Open, compare with `entries`, close."""
    journal = Journal(path, **how)
    assert_has(journal, entries)
    journal.close()


def admitted(ordinal: int) -> Admitted:
    return Admitted(ordinal, wave=0, environment="digits", cell="n=3", index=ordinal, seed=1, version=0)


def finished(ordinal: int) -> Finished:
    return Finished(group(ordinal, [1.0], num_tokens=2, num_prompt=2))


SHORT: list[Entry] = [
    admitted(0), admitted(1), admitted(2), finished(1), Published(0, "ab"), finished(0), Dropped(2, "why"),
    Picked(0, (0, 1)), Saved(1), admitted(3), finished(3),
]  # fmt: skip


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is forced to the disk, which is most of the time of a test that opens many journals."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@settings(max_examples=60)
@given(histories())
def test_what_was_appended_is_read_now_and_after_opening_again(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]
):
    path = tmp_path_factory.mktemp("run") / "journal"
    journal = Journal(path)
    for entry in entries:
        journal.append(entry)
    assert_has(journal, entries)
    journal.close()
    opened(path, entries, read_only=True)
    opened(path, entries)


@pytest.mark.parametrize("kept", range(1, len(SHORT)))
def test_a_journal_cut_in_its_last_record_has_exactly_the_records_before(
    tmp_path: Path, kept: int, capsys: pytest.CaptureFixture[str], quick_disk: None
):
    path = tmp_path / "journal"
    sizes = write(path, SHORT[: kept + 1])
    whole = path.read_bytes()
    for size in range(sizes[-2], sizes[-1]):
        path.write_bytes(whole[:size])
        opened(path, SHORT[:kept], read_only=True)
        assert path.stat().st_size == size
        opened(path, SHORT[:kept])
        assert path.stat().st_size == sizes[-2]
        said = f"{path}: cut {size - sizes[-2]:,} bytes of an unfinished record behind byte {sizes[-2]:,}\n"
        assert capsys.readouterr().err == (said if size > sizes[-2] else "")
    journal = Journal(path)
    journal.append(SHORT[kept])
    journal.close()
    assert path.read_bytes() == whole


def test_an_end_of_zeros_or_with_a_flipped_byte_is_cut(tmp_path: Path, quick_disk: None):
    path = tmp_path / "journal"
    sizes = write(path, SHORT)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(5000))
    opened(path, SHORT)
    for place in range(sizes[-2], sizes[-1]):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        opened(path, SHORT[:-1])


def test_a_flipped_byte_in_the_middle_is_damage_and_nothing_is_cut(tmp_path: Path, quick_disk: None):
    path = tmp_path / "journal"
    sizes = write(path, SHORT)
    whole = path.read_bytes()
    begins = [len(b"herd rl journal 1\n"), *sizes]
    for begin, end in pairwise(begins[:-1]):
        for place in range(begin, end):
            broken = whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
            path.write_bytes(broken)
            with pytest.raises(HerdError, match=rf"journal is damaged at byte {begin:,}: .* at byte {end:,} "):
                Journal(path)
            assert path.read_bytes() == broken


def test_a_group_that_is_damaged_while_the_run_lasts_is_not_trained(tmp_path: Path):
    path = tmp_path / "journal"
    write(path, SHORT[:4])
    journal = Journal(path)
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(bytes([whole[-3] ^ 1]))
    with pytest.raises(HerdError, match="damaged"):
        journal.group(1)
    journal.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"herd rl journal 2\n", "of another version of Herd"),
        (b"step,loss\n1,2\n", "not a journal of herd rl"),
        (b"herd rl journal 1\n\2\0\0\0\x0f\x18\xe1\xf8xx", "a record of another version"),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(HerdError, match=message):
        Journal(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("size", range(len(b"herd rl journal 1\n")))
def test_a_journal_that_was_killed_in_its_head_begins_again(tmp_path: Path, size: int):
    path = tmp_path / "journal"
    path.write_bytes(b"herd rl journal 1\n"[:size])
    write(path, SHORT)
    opened(path, SHORT)


def test_a_reader_neither_makes_nor_changes_the_file(tmp_path: Path):
    with pytest.raises(HerdError, match=r"journal cannot be opened \(No such file"):
        Journal(tmp_path / "journal", read_only=True)
    assert not (tmp_path / "journal").exists()
    write(tmp_path / "journal", SHORT)
    journal = Journal(tmp_path / "journal", read_only=True)
    with pytest.raises(AssertionError):
        journal.append(Saved(2))
    journal.close()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (admitted(0), "group 0 is admitted twice"),
        (finished(9), "group 9 is finished before it is admitted"),
        (finished(3), "group 3 is finished twice"),
        (finished(2), "group 2 is finished after it was dropped"),
        (Finished(group(4, cell="n=4")), "group 4 is of .*'n=4'.* was admitted for .*'n=3'"),
        (Dropped(9, "why"), "group 9 is dropped before it is admitted"),
        (Dropped(2, "why"), "group 2 is dropped twice"),
        (Dropped(0, "why"), "group 0 is dropped after it was picked"),
        (Picked(0, (3,)), "step 0 is picked twice"),
        (Picked(1, (3, 3)), "step 1 has a group twice"),
        (Picked(1, (4,)), "group 4 is picked before it is finished"),
        (Picked(1, (0,)), "group 0 is picked twice"),
        (Picked(1, (5,)), "group 5 is picked after it was dropped"),
        (Finished(group(4, logprobs=np.zeros(20))), "logprobs of a rollout is float64, not float32"),
    ],
)
def test_a_contradiction_is_a_bug_and_is_not_written(tmp_path: Path, entry: Entry, message: str):
    entries = [*SHORT, admitted(4), admitted(5), finished(5), Dropped(5, "no signal")]
    size = write(tmp_path / "journal", entries)[-1]
    journal = Journal(tmp_path / "journal")
    with pytest.raises(AssertionError, match=message):
        journal.append(entry)
    assert (tmp_path / "journal").stat().st_size == size
    assert_has(journal, entries)
    journal.close()


def test_a_file_of_two_writers_is_refused(tmp_path: Path):
    path = tmp_path / "journal"
    sizes = write(path, SHORT)
    content = path.read_bytes()
    path.write_bytes(content + content[sizes[0] : sizes[1]])
    with pytest.raises(HerdError, match=rf"at byte {sizes[-1]:,} \(group 1 is admitted twice\): did two runs write it"):
        Journal(path)


def test_other_weights_under_a_version_are_refused_and_the_same_are_written_once(tmp_path: Path):
    path = tmp_path / "journal"
    size = write(path, SHORT)[-1]
    journal = Journal(path)
    journal.append(Published(0, "ab"))
    with pytest.raises(HerdError, match=r"replay gave other weights for version 0 .*digest cd, before ab"):
        journal.append(Published(0, "cd"))
    journal.close()
    assert path.stat().st_size == size
    opened(path, SHORT)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_leaves_nothing_torn_and_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    path = tmp_path / "journal"
    size = write(path, SHORT[:-1])[-1]
    journal, real = Journal(path), os.pwrite

    def full(handle: int, data: bytes = b"", at: int = 0) -> int:
        if call == "pwrite" and at == size:
            return real(handle, data[:100], at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(HerdError, match=r"journal cannot be written \(No space left on device\): free"):
            journal.append(SHORT[-1] if call == "pwrite" else Saved(7))  # the one is large, the other forced
    assert path.stat().st_size == size
    assert_has(journal, SHORT[:-1])
    journal.append(SHORT[-1])
    journal.close()
    opened(path, SHORT)


def test_a_write_that_the_system_ends_in_the_middle_leaves_nothing_torn(tmp_path: Path):
    path = tmp_path / "journal"
    size = write(path, SHORT[:-1])[-1]
    journal = Journal(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(HerdError, match="File too large"):
            journal.append(SHORT[-1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == size
    journal.close()
    opened(path, SHORT[:-1])


def test_what_the_run_relies_on_is_forced_to_the_disk_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal, forced = Journal(tmp_path / "journal"), list[int]()
    monkeypatch.setattr(os, "fsync", lambda handle: forced.append(os.fstat(handle).st_size))
    for entry in SHORT:
        journal.append(entry)
        durable = not isinstance(entry, Admitted | Finished | Dropped)
        assert forced == [(tmp_path / "journal").stat().st_size] * durable
        forced.clear()
    journal.close()


def test_threads_append_whole_records(tmp_path: Path):
    journal = Journal(tmp_path / "journal")
    places = [range(first, first + 30) for first in range(0, 240, 30)]

    def work(ordinals: range) -> None:
        for ordinal in ordinals:
            journal.append(admitted(ordinal))
            journal.append(Finished(group(ordinal)))
            assert journal.group(ordinal).ordinal == ordinal

    threads = [threading.Thread(target=work, args=(one,)) for one in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    again = Journal(tmp_path / "journal")
    assert sorted(again.finished) == list(range(240))
    assert all(plain(again.group(ordinal)) == plain(group(ordinal)) for ordinal in again.finished)
    again.close()


APPENDING = """
import os, sys, time
from pathlib import Path
from rl_groups import group
from herd.rl.journal import Admitted, Finished, Journal

real = os.pwrite

def slow(file, data, at):
    time.sleep(0.001)
    return real(file, data[:256], at)  # a kill comes between two parts of a record

os.pwrite = slow

journal = Journal(Path(sys.argv[1]))
for ordinal in range(max(journal.admitted, default=-1) + 1, 10**9):
    journal.append(Admitted(ordinal, 0, "digits", "n=3", ordinal, 1, 0))
    journal.append(Finished(group(ordinal, [0.0, 1.0] * 4)))
    print(ordinal, flush=True)
"""


@pytest.mark.parametrize("num_kills", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_a_process_killed_again_and_again_loses_no_group_that_was_forced_to_the_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_kills: int
):
    path, rng, done, torn = tmp_path / "journal", random.Random(0), list[int](), 0
    folders = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    for _ in range(num_kills):
        child = subprocess.Popen(
            [sys.executable, "-c", APPENDING, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": folders},
        )
        assert child.stdout is not None
        done.append(int(child.stdout.readline()))
        time.sleep(rng.random() / 50)
        child.send_signal(signal.SIGKILL)
        done += map(int, child.stdout.read().split())
        assert child.wait() == -signal.SIGKILL
        journal = Journal(path)
        torn += "unfinished record" in capsys.readouterr().err
        assert set(done) <= journal.finished
        assert all(plain(journal.group(one)) == plain(group(one, [0.0, 1.0] * 4)) for one in [done[0], done[-1]])
        journal.close()
    assert torn  # else the kills came between the records, and this tests nothing


def test_two_thousand_groups_a_second_are_appended_and_read_where_the_disk_is_not_waited_for(
    tmp_path: Path, quick_disk: None
):
    journal = Journal(tmp_path / "journal")
    groups = [group(ordinal, [0.0, 1.0] * 4) for ordinal in range(600)]
    for ordinal in range(len(groups)):
        journal.append(admitted(ordinal))
    appended, read = list[float](), list[float]()
    for begin in range(0, len(groups), 100):  # this thread, and the quickest of six: other work is no failure
        clock = time.thread_time()
        for one in groups[begin : begin + 100]:
            journal.append(Finished(one))
        appended.append(time.thread_time() - clock)
        clock = time.thread_time()
        for ordinal in range(begin, begin + 100):
            journal.group(ordinal)
        read.append(time.thread_time() - clock)
    journal.close()
    assert 100 / min(appended) > 2000
    assert 100 / min(read) > 2000


def test_every_array_of_a_rollout_has_its_number_format():
    assert set(ARRAYS) == {one.name for one in fields(Rollout) if one.type is np.ndarray}
    assert all(vars(rollout())[name].dtype == dtype for name, dtype in ARRAYS.items())
