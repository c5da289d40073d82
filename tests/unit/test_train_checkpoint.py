"""Checkpoints: whole or never chosen, safe to read, kept by policy, and written while the training goes on."""

import errno
import io
import os
import pickle
import shutil
import tempfile
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from herd.bench.ranks import on_ranks
from herd.config import CheckpointConfig
from herd.core.lineage import Stage
from herd.errors import HerdError
from herd.train import checkpoint
from herd.train.checkpoint import Checkpoints, State


class Part:
    """Something with a state of two tensors."""

    def __init__(self, value: float) -> None:
        self.value = {"a": torch.full((3,), value), "b": {"c": torch.full((2, 2), value, dtype=torch.bfloat16)}}

    def state_dict(self) -> State:
        return self.value

    def load_state_dict(self, state: State) -> None:
        self.value = state


def begin(folder: Path, part: Part, **config: object) -> Checkpoints:
    stage = Stage("test", folder / "out", config={}, parents={})
    return Checkpoints(stage, CheckpointConfig(**{"every_s": 0.0, **config}), {"part": part})


def save(folder: Path, *steps: int, **config: object) -> Path:
    """Checkpoints after `steps`, whose tensors are the step's number; returns the folder that they are in."""
    part = Part(0)
    with begin(folder, part, **config) as checkpoints:
        for step in steps:
            part.value["a"].fill_(step)
            checkpoints.save(step)
    return checkpoints.root


def resume(folder: Path) -> tuple[int, float]:
    """The step that is resumed from, and what its tensors hold."""
    part = Part(-1)
    with begin(folder, part) as checkpoints:
        return checkpoints.resume(), part.value["a"][0].item()


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_the_newest_is_resumed_from_and_what_a_kill_tore_is_not(tmp_path: Path) -> None:
    assert resume(tmp_path) == (0, -1)
    root = save(tmp_path, 3, 10)
    shutil.copytree(root / "step-10", root / "step-12.writing")
    assert resume(tmp_path) == (10, 10)


def test_training_continues_while_the_copy_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, written = threading.Event(), checkpoint.write

    def slow(*args: object, **options: object) -> None:
        assert go.wait(10)
        written(*args, **options)

    monkeypatch.setattr(checkpoint, "write", slow)
    part = Part(1)
    with begin(tmp_path, part) as checkpoints:
        assert not checkpoints.save_if_due(1)
        part.value["a"].fill_(2)  # the next step's update
        assert not checkpoints.save_if_due(2)  # the one before is not yet written, so none is begun
        go.set()
    assert names(checkpoints.root) == {"step-1"}
    assert resume(tmp_path) == (1, 1)


def test_the_last_few_are_kept_and_every_so_many_th_over_all_attempts(tmp_path: Path) -> None:
    assert names(save(tmp_path, 1, 2, 3)) == {"step-2", "step-3"}
    shutil.rmtree(tmp_path / "out.partial")
    assert names(save(tmp_path, *range(10, 17), keep=1, keep_every=3)) == {"step-12", "step-15", "step-16"}
    part = Part(0)
    with begin(tmp_path, part, keep=1, keep_every=3) as checkpoints:
        assert checkpoints.resume() == 16
        checkpoints.save(17)  # the 8th
        checkpoints.save(18)
        checkpoints.save(19)
    assert names(checkpoints.root) == {"step-12", "step-15", "step-18", "step-19"}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "reported"),
    [
        (lambda path: flip_a_bit(path / "__0_0.distcp"), "__0_0.distcp is not what was written"),
        (lambda path: flip_a_bit(path / ".metadata"), ".metadata is not what was written"),
        (lambda path: (path / "__0_0.distcp").unlink(), "__0_0.distcp: no such file or directory"),
        (lambda path: (path / "commit.json").unlink(), "commit.json: no such file or directory"),
        (lambda path: (path / "commit.json").write_text("{}"), "commit.json is not what was written"),
        (lambda path: os.truncate(path / "__0_0.distcp", 100), "__0_0.distcp is not what was written"),
    ],
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: object, reported: str
) -> None:
    root = save(tmp_path, 3, 10)
    harm(root / "step-10")
    assert resume(tmp_path) == (3, 3)
    assert capsys.readouterr().err == (
        f"the checkpoint {root}/step-10 is damaged ({reported}): going on from the one before\n"
    )
    assert resume(tmp_path) == (3, 3)
    assert capsys.readouterr().err == ""
    assert names(save(tmp_path, 10, 11)) == {"step-10", "step-11"}  # what was set aside is gone


def test_where_no_checkpoint_is_whole_the_stage_does_not_start_over_by_itself(tmp_path: Path) -> None:
    root = save(tmp_path, 3)
    flip_a_bit(root / "step-3" / "__0_0.distcp")
    for _ in range(2):
        with pytest.raises(HerdError, match=r"no checkpoint in .*state is whole: give --restart"):
            resume(tmp_path)


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil",)


def test_a_checkpoint_from_elsewhere_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path, 3) / "step-3"
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(HerdError, match=r"posix.system has no place in the index of a checkpoint"):
        checkpoint.load(folder, {"part": Part(0).value})
    assert not Path("evil").exists()


class ByName:
    """Pickled as `getattr(kind, name)`, as Python before 3.11.4 does with members of an enumeration."""

    def __init__(self, kind: object, name: str) -> None:
        self.kind, self.name = kind, name

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, (self.kind, self.name)


def test_an_index_that_an_older_python_wrote_is_read_and_getattr_gives_nothing_else(tmp_path: Path) -> None:
    def read(value: object) -> object:
        return checkpoint._IndexUnpickler(io.BytesIO(pickle.dumps(value))).load()

    kind = checkpoint._MEM_FORMAT_ENCODING
    assert read(ByName(kind, "TORCH_PRESERVE_FORMAT")) is kind.TORCH_PRESERVE_FORMAT
    for other, name in ((checkpoint.Metadata, "__init__"), (kind, "__init__")):
        with pytest.raises((pickle.UnpicklingError, KeyError)):
            read(ByName(other, name))


@pytest.mark.parametrize(
    ("wanted", "reported"),
    [
        ({"a": torch.zeros(4)}, r"part\.a is \(3,\) of torch\.float32 in the one and \(4,\) of torch\.float32"),
        ({"a": torch.zeros(3, dtype=torch.uint8)}, r"part\.a is .* and \(3,\) of torch\.uint8 in the other"),
        ({"c": torch.zeros(3)}, r"part\.c is in one of them only"),
        ({"b": {}}, r"part\.b\.c is in one of them only"),
    ],
)
def test_a_checkpoint_of_other_tensors_is_refused_by_name(tmp_path: Path, wanted: State, reported: str) -> None:
    with begin(tmp_path, Part(1.0)) as checkpoints:
        checkpoints.save(3)
    folder = checkpoints.root / "step-3"
    with pytest.raises(HerdError, match=rf"step-3 does not fit what is trained now \({reported}"):
        checkpoint.load(folder, {"part": Part(0.0).value | wanted})


def test_a_checkpoint_that_the_disk_has_no_room_for_is_named_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: State, *, checkpoint_id: Path, **_: object) -> None:
        (checkpoint_id / "__0_0.distcp").write_bytes(b"a part")
        cause = RuntimeError("unexpected pos 704")  # as torch words it
        cause.__context__ = OSError(errno.ENOSPC, "No space left on device")
        raise CheckpointException("", {0: (cause, None)})

    root = save(tmp_path, 2)
    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(OSError, match="No space left") as error:
        save(tmp_path, 3)
    assert error.value.filename == str(root / "step-3")
    assert names(root) == {"step-2"}


def failing_save(folder: str, what: str) -> tuple[str, str]:
    """On two ranks: a save in which one of them fails at `what`; the error that this rank has, at the next turns."""
    broken = {"begin": (Path, "mkdir", 0), "checksums": (checkpoint, "sha256", 1), "commit": (checkpoint, "sync", 0)}
    owner, name, rank = broken[what]
    if dist.get_rank() == rank:
        before = getattr(owner, name)

        def fails(*args: object, **options: object) -> None:
            if "step-3" in str(args[0]):
                raise OSError(errno.EIO, "Input/output error", "disk")
            before(*args, **options)

        setattr(owner, name, fails)
    try:
        with begin(Path(folder), Part(3), keep=9) as checkpoints:
            checkpoints.save(2)
            checkpoints.wait()
            checkpoints.save(3)
            if rank == dist.get_rank():  # sees it while the other rank may still be writing
                wait([checkpoints._writing])
            for step in range(4, 1000):
                checkpoints.save_if_due(step)
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        if dist.get_rank() == rank:
            setattr(owner, name, before)
    return "", ""


def test_one_ranks_error_while_a_checkpoint_is_written_ends_the_save_on_all() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cases = [(2, failing_save, (f"{folder}/{what}", what)) for what in ("begin", "checksums", "commit")]
        for (_, _, (_, what)), reported in zip(cases, on_ranks(*cases), strict=True):
            failed = 1 if what == "checksums" else 0
            assert reported[failed] == ("OSError", "[Errno 5] Input/output error: 'disk'"), (what, reported)
            other = f"rank {failed} failed: OSError: [Errno 5] Input/output error: 'disk'"
            assert reported[1 - failed] == ("HerdError", other), (what, reported)
            assert names(Path(folder) / what / "out.partial" / "state") == {"step-2"}


def failing_resume(folder: str) -> tuple[str, str]:
    """On two ranks, where no checkpoint is whole: the error of this rank."""
    with pytest.raises(HerdError) as error, begin(Path(folder), Part(0)) as checkpoints:
        checkpoints.resume()
    return type(error.value).__name__, str(error.value)


def test_a_damaged_state_is_refused_on_all_ranks(tmp_path: Path) -> None:
    flip_a_bit(save(tmp_path, 3) / "step-3" / "__0_0.distcp")
    [reported] = on_ranks((2, failing_resume, (str(tmp_path),)))
    assert all("is whole: give --restart" in text for _, text in reported)
