"""Checkpoints of a running stage with torch.distributed.checkpoint: copied, written meanwhile, committed in two phases.

A checkpoint is the folder `state/step-N` of the stage's work folder. At a save the state is copied to the host's
memory, from a card to pinned memory (8 bytes a parameter that Muon trains, 12 of AdamW's, less with 8-bit moments), and
the training goes on while a thread writes the copy to `step-N.writing`, each file forced to the disk. Then
`commit.json` with sizes and checksums of all files is written there, and the folder renamed: under its final name it is
whole. What a kill tore is never read.

Training resumes from the newest checkpoint whose files match its `commit.json`, by any number of ranks. The library
keeps its index as a pickle, `.metadata`: it is read by an unpickler that knows only the index's own classes, and the
tensors with `weights_only`, so that a checkpoint from elsewhere cannot run code.
"""

import json
import logging
import os
import pickle
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    STORAGE_TYPES,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves, tree_map

from herd.config import CheckpointConfig
from herd.core.device import pinned_like
from herd.core.files import naming_full_disk, read_json, sha256, sync, write_json
from herd.core.lineage import Stage
from herd.errors import HerdError
from herd.model.parallel.layout import Shard

T = TypeVar("T")
MARK = "commit.json"
State = dict[str, Any]
"""Nested dicts whose leaves are tensors, or DTensors of any placement."""


class Stateful(Protocol):
    """What a checkpoint holds a part of."""

    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...


class Checkpoints:
    """The checkpoints of one stage: when one is due, the one that is being written, and which are kept.

    All ranks call the same methods in the same order. `parts` by name are what is saved. Leaving the context waits for
    what is being written, but for a KeyboardInterrupt.
    """

    def __init__(self, stage: Stage, config: CheckpointConfig, parts: Mapping[str, Stateful]) -> None:
        self.stage, self.config, self.parts = stage, config, parts
        self.root = stage.work / "state"
        self.step = 0
        """Steps done at the newest checkpoint that was started."""
        self.number = 0
        """How many checkpoints were started, over all attempts."""
        self._copy: State | None = None
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_lower_priority)
        self._begun = time.monotonic()
        several = dist.is_initialized()
        # Two, as their messages cross: the thread's while it writes, and the loop's.
        self._writers = dist.new_group(backend="gloo") if several else None
        self._loops = dist.new_group(backend="gloo") if several else None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        at_once = kind is KeyboardInterrupt  # a second Ctrl-C: what is half written is not read again
        try:
            if not at_once:
                self.wait()
        except Exception:
            if kind is None:  # else what went wrong first is raised
                raise
        finally:
            self._thread.shutdown(wait=not at_once)

    def resume(self) -> int:
        """Load the newest whole checkpoint, if there is one; returns the steps that it has behind it."""
        found = on_all(self._loops, lambda: newest(self.root) if _rank() == 0 else None)[0]
        if found is not None:
            state = self._state()
            load(found, state)
            for name, part in self.parts.items():
                if name in state:  # the others keep nothing
                    part.load_state_dict(state[name])
            mark = read_json(found / MARK)
            self.step, self.number = mark["step"], mark["number"]
        return self.step

    def save_if_due(self, step: int, *, leave: bool = False) -> bool:
        """Between two steps, `step` of them done: save if it is time to, or if any rank wants to leave.

        Returns whether any rank does; the checkpoint is then committed. Raises on all ranks if an earlier one could not
        be written.
        """
        idle = self._writing is None or self._writing.done()
        failed = idle and self._writing is not None and self._writing.exception() is not None
        due = idle and step > self.step and time.monotonic() - self._begun > self.config.every_s
        flags = torch.tensor([due and _rank() == 0, leave, failed], dtype=torch.int32)
        if self._loops is not None:
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._loops)
        due, leave, failed = (bool(flag) for flag in flags)
        if failed:
            self.wait()  # raises on every rank, as `write` fails on all or on none
        if step > self.step and (due or leave):
            self.save(step)
        if leave:
            self.wait()
        return leave

    def save(self, step: int) -> None:
        """Copy the state now and write it meanwhile, once the one before is written."""
        self.wait()
        state = self._state()
        if self._copy is None:
            self._copy = tree_map(host_like, state)
        tree_map(lambda kept, tensor: kept.copy_(tensor.detach(), non_blocking=True), self._copy, state)
        wait_for_copies(state)
        self.step, self.number, self._begun = step, self.number + 1, time.monotonic()
        self._writing = self._thread.submit(self._write, self._copy, {"step": step, "number": self.number})

    def wait(self) -> None:
        """Until what is being written is committed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _state(self) -> State:
        return {name: state for name, part in self.parts.items() if (state := part.state_dict())}

    def _write(self, state: State, mark: dict[str, Any]) -> None:
        def before() -> None:
            self.stage.save_time()
            if (metrics := self.stage.work / "metrics.jsonl").exists():
                sync(metrics)  # before a commit declares its steps done

        on_first(self._writers, before)
        write(self.root / f"step-{mark['step']}", state, mark, group=self._writers)
        on_first(self._writers, lambda: prune(self.root, self.config))


def host_like(tensor: torch.Tensor) -> torch.Tensor:
    """Memory of the host for a copy of one tensor of a state: pinned where it comes from a card."""
    if isinstance(tensor, Shard):
        return Shard(pinned_like(tensor.local), tensor.placement)
    return torch.empty_like(tensor) if isinstance(tensor, DTensor) else pinned_like(tensor)


def wait_for_copies(state: State) -> None:
    """Until the copies of a state from a card are made: what they were made of may change from then on."""
    for device in {tensor.device for tensor in tree_leaves(state) if tensor.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()


def write(done: Path, state: State, mark: dict[str, Any], *, group: dist.ProcessGroup | None = None) -> None:
    """Write the checkpoint folder `done` in two phases; `mark` is the content of commit.json, `group` the ranks that
    write it.

    Raises on every rank if any of them cannot do its part; nothing is left under `done` then.
    """
    writing, rank = done.with_name(f"{done.name}.writing"), _rank()

    def begin() -> None:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)

    def checksums() -> dict[str, dict[str, Any]]:
        own = [path for path in writing.iterdir() if path.name.startswith(f"__{rank}_")]
        own += [writing / ".metadata"] if rank == 0 else []
        return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in own}

    def commit() -> None:
        write_json(writing / MARK, {**mark, "files": files})
        sync(writing)
        remove(done)
        writing.rename(done)
        sync(done.parent)

    try:
        with naming_full_disk(done):
            on_first(group, begin)
            # The library passes an error of one rank on to all, as `on_all` does.
            _call_quietly(dcp.save, state, checkpoint_id=writing, process_group=group, no_dist=group is None)
            files = {name: file for own in on_all(group, checksums) for name, file in own.items()}
            on_first(group, commit)
    except Exception:
        if rank == 0:
            shutil.rmtree(writing, ignore_errors=True)  # the next attempt needs the space
        raise


def on_all(group: dist.ProcessGroup | None, work: Callable[[], T]) -> list[T]:
    """Do `work` on every rank of `group`; returns the results of all, by rank.

    An error on one rank raises on all of them: there as it is, elsewhere as a HerdError that names rank and error. So
    no rank goes on to a collective that another will never join.
    """
    if group is None:
        return [work()]
    own: Exception | None = None
    done: tuple[T | None, str | None]
    try:
        done = work(), None
    except Exception as error:
        own, done = error, (None, f"{type(error).__name__}: {error}".splitlines()[0])
    gathered: list[tuple[T, str | None]] = [done] * dist.get_world_size(group)  # type: ignore[list-item]
    dist.all_gather_object(gathered, done, group=group)
    if own is not None:
        raise own
    for rank, (_, trouble) in enumerate(gathered):
        if trouble is not None:
            raise HerdError(f"rank {rank} failed: {trouble}")
    return [result for result, _ in gathered]


def on_first(group: dist.ProcessGroup | None, work: Callable[[], None]) -> None:
    """Do `work` on the first rank while the others wait; its error raises on all."""
    on_all(group, work if _rank() == 0 else lambda: None)


def _call_quietly(function: Callable[..., object], state: State, **options: Any) -> None:
    """Call the library without its log lines; a CheckpointException is replaced by the error that it holds."""
    cause = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that there is one process, as intended
            function(state, **options)
    except CheckpointException as error:  # no Exception
        cause = next(iter(error.failures.values()))[0]
    if cause is not None:  # raised out here, or it would lose what it came from
        raise cause


def candidates(root: Path) -> list[Path]:
    """The checkpoints of a stage by their names, newest first."""
    found = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: -int(path.name.removeprefix("step-")))


def newest(root: Path) -> Path | None:
    """The newest checkpoint that is whole. A damaged one is reported and renamed to `step-N.damaged`."""
    found = candidates(root)
    for path in found:
        trouble = fault(path)
        if trouble is None:
            return path
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        print(f"the checkpoint {path} is damaged ({trouble}): going on from the one before", file=sys.stderr)
    if found or any(root.glob("step-*.damaged")):
        raise HerdError(f"no checkpoint in {root} is whole: give --restart to move them aside and begin anew")
    return None


def saved_dtype(root: Path) -> torch.dtype | None:
    """The number format of the weights in the newest checkpoint whose index can be read; None if there is none."""
    for path in candidates(root):
        try:
            held = _SafeReader(path).read_metadata().state_dict_metadata
        except (OSError, pickle.UnpicklingError, EOFError):
            continue  # it is judged, and set aside, by `newest`
        for name, tensor in held.items():
            if name.startswith("optimizer.weight.") and isinstance(tensor, TensorStorageMetadata):
                return tensor.properties.dtype
    return None


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if its files are those that were committed."""
    try:
        files = json.loads((path / MARK).read_text(encoding="utf-8"))["files"]
        for name, wanted in files.items():
            file = path / name
            if file.stat().st_size != wanted["bytes"] or sha256(file) != wanted["sha256"]:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {str(error.strerror).lower()}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MARK} is not what was written"
    return None


def remove(path: Path) -> None:
    """Remove a checkpoint; a kill in the middle leaves nothing under its name."""
    if path.exists():
        gone = path.with_name(f"{path.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone)


def prune(root: Path, config: CheckpointConfig) -> None:
    """Remove what the policy does not keep, and what kills and damage left."""
    kept = candidates(root)[: config.keep]
    for path in root.iterdir():
        if path in kept:
            continue
        lasting = config.keep_every and path in candidates(root)
        if lasting and read_json(path / MARK)["number"] % config.keep_every == 0:
            continue
        remove(path)


INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "torch": {"Size"} | {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}
"""By module, what `.metadata` is made of; none of it does anything when it is made."""


def _memory_format(kind: Any, name: str) -> _MEM_FORMAT_ENCODING:
    """In place of `getattr`, by which Python before 3.11.4 pickles a member of an enumeration."""
    if kind is not _MEM_FORMAT_ENCODING:
        raise pickle.UnpicklingError(f"getattr of {kind!r} has no place in the index of a checkpoint")
    return _MEM_FORMAT_ENCODING[name]


class _IndexUnpickler(pickle.Unpickler):
    """Knows INDEX_CLASSES, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        if name not in INDEX_CLASSES.get(module, set()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in the index of a checkpoint")
        return super().find_class(module, name)


class _SafeReader(FileSystemReader):
    """Reads the index with `_IndexUnpickler`. The tensors the library reads with `weights_only` itself."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _IndexUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def load(path: Path, state: State) -> None:
    """Fill the tensors of `state` in place from a checkpoint, whatever ranks wrote it. Raises HerdError where those
    that it holds have other names, shapes or kinds."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    try:
        held = _SafeReader(path).read_metadata().state_dict_metadata
        if trouble := misfit(held, flatten_state_dict(state)[0]):
            raise HerdError(trouble)
        _call_quietly(dcp.load, state, storage_reader=_SafeReader(path), no_dist=not dist.is_initialized())
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise HerdError(
            f"the checkpoint {path} does not fit what is trained now ({reason}): give the settings that it was made "
            "with, or --restart to move it aside and begin anew"
        ) from error


def misfit(held: Mapping[str, STORAGE_TYPES], wanted: Mapping[str, Any]) -> str | None:
    """How the tensors of a checkpoint differ from those that are to be filled; None if they do not."""
    if other := sorted(held.keys() ^ wanted.keys()):
        return f"{other[0]} is in one of them only"
    for name, tensor in wanted.items():
        kind = held[name]
        assert isinstance(kind, TensorStorageMetadata)
        if (kind.size, kind.properties.dtype) != (tensor.shape, tensor.dtype):
            ours = f"{tuple(tensor.shape)} of {tensor.dtype}"
            return f"{name} is {tuple(kind.size)} of {kind.properties.dtype} in the one and {ours} in the other"
    return None


def _lower_priority() -> None:
    """Let the training go first: a thread that takes a core from one of its equals holds up all of them."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + 10)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
