"""A disk that becomes full in the middle of `herd rl`: the run says so in one line, and goes on to the bit."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from rl_world import Jittered, make_world, settings

from herd.core.console import one_line
from herd.errors import HerdError
from herd.rl.journal import Journal, Saved
from herd.stages.rl import JOURNAL, rl

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = settings(Jittered, mode="pinned", lag=1, num_steps=5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_world(tmp_path_factory.mktemp("rl"))


@pytest.fixture(scope="module")
def calm(world: tuple[Path, Path]) -> Journal:
    rl(CONFIG, *world, out := world[0].parent / "calm")
    return Journal(out / JOURNAL, read_only=True)


class Disk:
    """Becomes full at a write of the journal or of a checkpoint, in whose middle it is; then nothing can be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, journal: int | None = None, save: int | None = None) -> None:
        self.is_full, self.num_records, self.num_saves = False, 0, 0
        self._at_record, self._at_save = journal, save
        self._pwrite, self._save = os.pwrite, dcp.save
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(dcp, "save", self.save)

    def pwrite(self, handle: int, data: bytes, at: int) -> int:
        self.num_records += 1
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.num_records == self._at_record:
            self.is_full = True
            data = data[: len(data) // 2]
        return self._pwrite(handle, data, at)

    def save(self, state: Any, *, checkpoint_id: Path, **options: Any) -> Any:
        self.num_saves += 1
        self.is_full = self.is_full or self.num_saves == self._at_save
        if self.is_full:
            (checkpoint_id / "__0_0.distcp").write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._save(state, checkpoint_id=checkpoint_id, **options)


@pytest.mark.parametrize(
    "when", [{"journal": 2}, pytest.param({"journal": 12}, marks=pytest.mark.slow), {"journal": 31}, {"save": 1}]
)
def test_a_run_whose_disk_becomes_full_says_so_and_goes_on_to_the_bit(
    world: tuple[Path, Path], calm: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: dict[str, int]
) -> None:
    with monkeypatch.context() as patch:
        disk = Disk(patch, **when)
        with pytest.raises(Exception) as raised:
            rl(CONFIG, *world, tmp_path / "out")
        assert disk.is_full
    line = one_line(raised.value)
    assert line is not None
    assert "disk" in line and "re-run the same command to resume" in line
    assert str(tmp_path) in line
    assert not (tmp_path / "out").exists()
    rl(CONFIG, *world, tmp_path / "out")
    again = Journal(tmp_path / "out" / JOURNAL, read_only=True)
    assert (again.published, again.picked) == (calm.published, calm.picked)


def test_what_is_written_to_a_closed_journal_gets_into_no_other_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.close()
    with (tmp_path / "other").open("wb"):  # has the number that the journal's file had
        with pytest.raises(HerdError, match="journal cannot be written"):
            journal.append(Saved(1))
        journal.close()
    assert (tmp_path / "other").read_bytes() == b""
