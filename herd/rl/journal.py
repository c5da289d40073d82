"""The append-only truth of an RL run: one file, `journal`, in the stage's work folder. No torch.

A head with the format's version, then records: length and crc32 of the payload (4 bytes each, little-endian), and the
payload, which is one byte for the kind of entry and its fields as a MessagePack map, arrays as their bytes.

Records after which the run relies on what they say (picked, published, saved) are forced to the disk before `append`
returns, and all earlier ones with them; a group that was not picked yet can be drawn again. Opening reads the records
and keeps in memory where each finished group begins; the groups stay on disk. A torn end, as a kill or a full disk
leaves it, is cut off. A broken record with whole ones behind it is damage: the file is refused and nothing is cut.

The stage's work folder is locked while the stage runs, so one process writes; others may open it with `read_only`.
"""

import mmap
import os
import sys
import threading
from collections.abc import KeysView
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from herd.core.files import sync
from herd.errors import HerdError
from herd.rl.record import Group
from herd.rl.record_bytes import PREFIX_BYTES, array_bytes, check_arrays, decode_group, frame, next_whole, payload_at

MAGIC = b"herd rl journal "
HEAD = MAGIC + b"1\n"


@dataclass(frozen=True)
class Admitted:
    """A group has got its ordinal: it will be drawn, in this attempt or after a resume."""

    ordinal: int
    wave: int
    environment: str
    cell: str
    index: int
    seed: int
    version: int
    """Of the weights at admission."""


@dataclass(frozen=True)
class Finished:
    """All rollouts of a group are drawn and have their rewards."""

    group: Group


@dataclass(frozen=True)
class Dropped:
    """The group will not be trained."""

    ordinal: int
    why: str


@dataclass(frozen=True)
class Picked:
    """The groups that are the batch of a training step."""

    step: int
    ordinals: tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """The rollout side has the weights of a version."""

    version: int
    digest: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint with so many steps behind it is whole."""

    step: int


Entry = Admitted | Finished | Dropped | Picked | Published | Saved
DURABLE = (Picked, Published, Saved)


@dataclass(frozen=True)
class _Task:
    """Of a finished group, what the index needs: the rest of it is not decoded."""

    ordinal: int
    environment: str
    cell: str
    index: int


@dataclass(frozen=True)
class _FinishedTask:
    group: _Task


_KINDS = {Admitted: b"a", Finished: b"f", Dropped: b"d", Picked: b"p", Published: b"v", Saved: b"s"}
_READ = {kind: _FinishedTask if entry is Finished else entry for entry, kind in _KINDS.items()}


class Journal:
    """The journal at `path`, made if absent. `append` and `group` may be called by several threads.

    `read_only`: for another process than the run's. The file must exist, and is not changed.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path, self.read_only = path, read_only
        self.admitted: dict[int, Admitted] = {}
        self.dropped: dict[int, str] = {}
        self.picked: dict[int, tuple[int, ...]] = {}
        """Training step → ordinals, in the order in which they were picked."""
        self.published: dict[int, str] = {}
        """Version of the weights → digest."""
        self.saved: int | None = None
        """Steps behind the newest checkpoint."""
        self._places: dict[int, tuple[int, int]] = {}
        """Ordinal of a finished group → where its record begins, and its bytes."""
        self._steps: dict[int, int] = {}
        """Ordinal of a picked group → training step."""
        self._lock = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise HerdError(f"{path} cannot be opened ({error.strerror})") from None
        try:
            self._end = self._load()
        except BaseException:
            os.close(self._file)
            raise

    @property
    def finished(self) -> KeysView[int]:
        """The ordinals of all finished groups, those that were picked or dropped later included."""
        return self._places.keys()

    def append(self, entry: Entry) -> None:
        """Write one entry, whole or not at all. HerdError: the disk does not take it, or weights differ from those that
        were published under their version. AssertionError: the entry contradicts an earlier one."""
        assert not self.read_only
        with self._lock:
            self._check(entry)
            if isinstance(entry, Published) and entry.version in self.published:
                return  # a resumed run has trained the same weights again
            record = _record(entry)
            self._write(record, durable=isinstance(entry, DURABLE))
            self._index(entry, (self._end, len(record)))
            self._end += len(record)

    def group(self, ordinal: int) -> Group:
        """A finished group, read from the disk."""
        begin, size = self._places[ordinal]
        record = os.pread(self._file, size, begin)
        payload = payload_at(record, 0)
        if payload is None:
            raise HerdError(f"{self.path} is damaged at byte {begin:,}: restore it from a copy")
        return decode_group(msgspec.msgpack.decode(payload[1:])["group"])

    def close(self) -> None:
        """A thread that comes late fails then, and does not write into what has been opened since."""
        with self._lock:
            file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _write(self, record: bytes, *, durable: bool) -> None:
        try:
            done = 0
            while done < len(record):  # a disk that becomes full takes a part
                done += os.pwrite(self._file, record[done:], self._end + done)
            if durable:
                os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):  # what stays behind the end is cut when the file is opened
                os.ftruncate(self._file, self._end)
            raise HerdError(
                f"{self.path} cannot be written ({error.strerror}): free the disk, then re-run the same command to "
                "resume"
            ) from error

    def _load(self) -> int:
        """Read all records into the index; returns where the next one begins."""
        size = os.fstat(self._file).st_size
        start = os.pread(self._file, len(HEAD), 0)
        if start != HEAD:
            if self.read_only or not HEAD.startswith(start):
                other = start.startswith(MAGIC)
                why = "of another version of Herd" if other else "not a journal of herd rl, or damaged at its head"
                raise HerdError(f"{self.path} is {why}: restore it from a copy, or give another folder")
            self._end = 0
            self._write(HEAD, durable=True)
            sync(self.path.parent)
            return len(HEAD)
        with mmap.mmap(self._file, size, access=mmap.ACCESS_READ) as data:
            at = len(HEAD)
            while (payload := payload_at(data, at)) is not None:
                length = PREFIX_BYTES + len(payload)
                self._load_one(payload, at, length)
                at += length
            behind = next_whole(data, at + 1, kinds=b"".join(_READ)) if at < size else None
        if behind is not None:
            raise HerdError(
                f"{self.path} is damaged at byte {at:,}: whole records begin again at byte {behind:,} of {size:,}; "
                f"restore it from a copy, or give up all that follows with `truncate -s {at} {self.path}`"
            )
        if at < size and not self.read_only:
            print(f"{self.path}: cut {size - at:,} bytes of an unfinished record behind byte {at:,}", file=sys.stderr)
            os.ftruncate(self._file, at)
            os.fsync(self._file)
        return at

    def _load_one(self, payload: bytes, begin: int, length: int) -> None:
        try:
            entry: Any = msgspec.msgpack.decode(payload[1:], type=_READ[payload[:1]])
        except (KeyError, msgspec.MsgspecError):
            raise HerdError(f"{self.path} has at byte {begin:,} a record of another version of Herd") from None
        try:
            self._check(entry)
        except AssertionError as error:
            raise HerdError(
                f"{self.path} contradicts itself at byte {begin:,} ({error}): did two runs write it? Restore it from a "
                "copy"
            ) from None
        self._index(entry, (begin, length))

    def _check(self, entry: Any) -> None:
        """Raise where `entry` cannot follow what is there."""
        match entry:
            case Admitted(ordinal=ordinal):
                assert ordinal not in self.admitted, f"group {ordinal} is admitted twice"
            case Finished(group=task) | _FinishedTask(group=task):
                ordinal = task.ordinal
                assert ordinal in self.admitted, f"group {ordinal} is finished before it is admitted"
                assert ordinal not in self._places, f"group {ordinal} is finished twice"
                assert ordinal not in self.dropped, f"group {ordinal} is finished after it was dropped"
                admitted = self.admitted[ordinal]
                expected = (admitted.environment, admitted.cell, admitted.index)
                found = (task.environment, task.cell, task.index)
                assert found == expected, f"group {ordinal} is of {found}, but was admitted for {expected}"
            case Dropped(ordinal=ordinal):
                assert ordinal in self.admitted, f"group {ordinal} is dropped before it is admitted"
                assert ordinal not in self.dropped, f"group {ordinal} is dropped twice"
                assert ordinal not in self._steps, f"group {ordinal} is dropped after it was picked"
            case Picked(step=step, ordinals=ordinals):
                assert step not in self.picked, f"step {step} is picked twice"
                assert len(set(ordinals)) == len(ordinals), f"step {step} has a group twice"
                for ordinal in ordinals:
                    assert ordinal in self._places, f"group {ordinal} is picked before it is finished"
                    assert ordinal not in self.dropped, f"group {ordinal} is picked after it was dropped"
                    assert ordinal not in self._steps, f"group {ordinal} is picked twice"
            case Published(version=version, digest=digest):
                before = self.published.get(version, digest)
                if before != digest:
                    raise HerdError(
                        f"replay gave other weights for version {version} than {self.path} has: digest {digest[:16]}, "
                        f"before {before[:16]}; resume with the software, settings and number of threads that began "
                        "the run, or start over with --restart"
                    )

    def _index(self, entry: Any, place: tuple[int, int]) -> None:
        match entry:
            case Admitted(ordinal=ordinal):
                self.admitted[ordinal] = entry
            case Finished(group=task) | _FinishedTask(group=task):
                self._places[task.ordinal] = place
            case Dropped(ordinal=ordinal, why=why):
                self.dropped[ordinal] = why
            case Picked(step=step, ordinals=ordinals):
                self.picked[step] = ordinals
                self._steps.update(dict.fromkeys(ordinals, step))
            case Published(version=version, digest=digest):
                self.published[version] = digest
            case Saved(step=step):
                self.saved = step


def _record(entry: Entry) -> bytes:
    if isinstance(entry, Finished):
        check_arrays(entry.group)
    return frame(_KINDS[type(entry)] + msgspec.msgpack.encode(entry, enc_hook=array_bytes))
