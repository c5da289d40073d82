"""`herd.json`: where a folder comes from. Written last, so its presence means that the folder is whole."""

import hashlib
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import herd
from herd.core.files import (
    cache_folder,
    commit_folder,
    files_hash,
    folder_hash,
    read_json,
    work_folder,
    write_atomic,
    write_json,
)
from herd.core.inputs import find_files, is_module, is_pattern, module_digest
from herd.errors import HerdError


def commit_id() -> str:
    """The commit of the checkout that the package runs from, `-dirty` if changed since; `unknown` outside one."""
    here = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return run.stdout.strip() or "unknown"


def code_version() -> str:
    """The version and commit of the code that runs, as `made_by` has those of a folder."""
    return f"{herd.__version__} ({commit_id()})"


def made_by(lineage: dict[str, Any]) -> str:
    """The version and commit of the code that wrote a folder."""
    return f"{lineage['herd_version']} ({lineage['commit']})"


def peak_memory_bytes() -> int:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage returns includes what the parent had when it started this process
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


REQUEST, CHANGED, CHANGES, SECONDS, STATE = ".request.json", ".changed.json", ".changes.json", ".seconds", "state"
"""What unfinished work has and a finished folder has not: what was asked for, what is asked for now instead, what has
changed on the way, the seconds worked, the checkpoints."""


LONG_S, SETTLED_S = 1.0, 2.0
"""A hash that takes longer is kept, if the files are older than that."""


class Stage:
    """The work on one output folder: started in `OUT.partial`, resumed there after a kill, committed by rename.

    `time_s` in herd.json sums the working time over all attempts.
    """

    def __init__(self, name: str, out: Path, *, config: Any, parents: dict[str, Path]) -> None:
        self.name, self.out, self.parents = name, out, parents
        self.config = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
        for parent in parents.values():
            check_exists(parent)
        self.work = work_folder(out)
        self.work.mkdir(parents=True, exist_ok=True)
        self._clock = self.work / SECONDS
        self._before_s = float(self._clock.read_text() or 0) if self._clock.exists() else 0.0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before_s + time.monotonic() - self._start

    def save_time(self) -> None:
        """Remember the time worked so far; called at checkpoints so that a killed attempt still counts."""
        write_atomic(self._clock, f"{self.seconds:.3f}")

    def record_resume(self, step: int) -> None:
        """Record that training resumes from `step`; settings that were asked to change have changed with that."""
        changed, notes = self.work / CHANGED, self.work / CHANGES
        if changed.exists():
            asked, earlier = read_json(changed), read_json(notes) if notes.exists() else []
            change = {"step": step, "fields": asked["fields"]}
            if change not in earlier[-1:]:  # a kill came before the file was removed
                write_json(notes, [*earlier, change])
            write_json(self.work / REQUEST, asked["request"])
            changed.unlink()

    def finish(self, **facts: Any) -> Path:
        """Write herd.json with the lineage and `facts` (metrics, card, …) and put the folder in its place. Until
        herd.json is written the checkpoints stay."""
        changes, mark = self.work / CHANGES, self.work / REQUEST
        begun = read_json(mark)["parents"] if mark.exists() else {}  # what it was made of, whatever is there now
        write_json(
            self.work / "herd.json",
            {
                "stage": self.name,
                "herd_version": herd.__version__,
                "commit": commit_id(),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "time_s": round(self.seconds, 2),
                "peak_memory_bytes": peak_memory_bytes(),
                "parents": {
                    role: {"path": str(path), "hash": begun.get(role) or hash_of(path)}
                    for role, path in self.parents.items()
                },
                "config": self.config,
                **({"changes": read_json(changes)} if changes.exists() else {}),
                "hash": folder_hash(self.work, without=STATE),
                **facts,
            },
        )
        commit_finished(self.out)
        return self.out


def commit_finished(out: Path) -> bool:
    """Put work that has its herd.json in its place, also where a kill came before the rename; whether there was any."""
    work = work_folder(out)
    if not (work / "herd.json").exists():
        return False
    shutil.rmtree(work / STATE, ignore_errors=True)
    for name in (REQUEST, CHANGED, CHANGES, SECONDS):
        (work / name).unlink(missing_ok=True)
    if aside := commit_folder(out):
        print(f"the older {out} is kept as {aside}")
    return True


def remove_leftovers(out: Path) -> None:
    """Remove what is left of work that is done in one go. Raises HerdError where it is that of a stage, which may have
    trained for hours."""
    work = work_folder(out)
    if (work / REQUEST).exists() or (work / STATE).exists():
        raise HerdError(f"{work} is the unfinished work of another command: give another folder to write")
    shutil.rmtree(work, ignore_errors=True)


def saved_step(work: Path) -> int | None:
    """The steps behind the newest checkpoint of unfinished work; None if it has none."""
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in (work / STATE).glob("step-*"))
    return max((int(name[1]) for name in names if name), default=None)


def read_lineage(folder: Path) -> dict[str, Any]:
    """The contents of `folder/herd.json`."""
    lineage: dict[str, Any] = read_json(folder / "herd.json")
    return lineage


def check_exists(path: Path) -> None:
    """Raise HerdError if there is no such folder or file, no file of such a pattern, or no such module."""
    if is_module(str(path)):
        module_digest(str(path))
    elif is_pattern(str(path)):
        find_files(str(path))
    elif not path.exists():
        raise HerdError(f"{path} is not there: give a folder or file that is")


def hash_of(folder: Path) -> str:
    """The hash in a folder's herd.json; of a folder that Herd did not make, of a file, of those of a pattern, or of the
    code of a module, that of what is there now."""
    check_exists(folder)
    if is_module(str(folder)):
        return module_digest(str(folder))
    if is_pattern(str(folder)):
        return cached_hash([file.path for file in find_files(str(folder))])
    if folder.is_file():
        return cached_hash([folder])
    if (folder / "herd.json").exists():
        known: str | None = read_lineage(folder).get("hash")
        if known:
            return known
    return cached_hash(folder)


def cached_hash(what: Path | Sequence[Path]) -> str:
    """`folder_hash` of a folder, or the hash of files, kept in the cache where it takes long, as of a released model,
    for as long as no file has another size or time of change."""
    paths = sorted(what.resolve().rglob("*")) if isinstance(what, Path) else [path.resolve() for path in what]
    stats = [(str(path), path.stat()) for path in paths if path.is_file()]
    files = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    kept = cache_folder() / "hashes" / hashlib.sha256(files.encode()).hexdigest()
    with suppress(OSError):
        return kept.read_text()
    begin = time.time()
    digest = folder_hash(what) if isinstance(what, Path) else files_hash(what)
    settled = all(stat.st_mtime < begin - SETTLED_S for _, stat in stats)  # a later write would have another time
    if settled and time.time() - begin > LONG_S:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, digest)
    return digest
