"""The user's own files that a stage reads: found by path or pattern, and watched while they are read.

A path is a file, a folder, a pattern (`corpus/**/*.jsonl.zst`), or `module:name` of Python code.
"""

import glob
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from herd.errors import HerdError

_MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file as it was when it was found."""

    path: Path
    size: int
    mtime_ns: int

    def check_unchanged(self) -> None:
        """Raise HerdError if the file has changed since: what was read of it may be neither the old nor the new."""
        try:
            now = self.path.stat()
        except OSError as error:
            raise HerdError(f"{self.path} is gone since the run began ({error.strerror}): re-run the command") from None
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise HerdError(
                f"{self.path} has changed since the run began ({self.size:,} bytes then, {now.st_size:,} now): re-run "
                "the command when nothing writes to it"
            )


def is_module(path: str) -> bool:
    """Whether `path` is the `module:name` of an object in Python code."""
    return _MODULE.fullmatch(path) is not None and not Path(path).exists()


def is_pattern(path: str) -> bool:
    """Whether `path` is a pattern for the names of files."""
    return glob.has_magic(path) and not Path(path).exists()


def find_files(path: str) -> list[InputFile]:
    """The files at `path` in the order of their names; hidden ones and those in hidden folders are left out.

    Raises HerdError where there is none.
    """
    path = str(Path(path).expanduser())
    if Path(path).is_dir():
        found = list(_walk(path))
    elif is_pattern(path):
        found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
    else:
        found = [path]
    files = []
    for name in found:
        file = Path(name)
        if file.is_file():
            stat = file.stat()
            files.append(InputFile(path=file, size=stat.st_size, mtime_ns=stat.st_mtime_ns))
    if not files:
        there = "there is no file like this" if is_pattern(path) or not Path(path).exists() else "it has no file"
        raise HerdError(f"{path}: {there}; give a file, a folder, or a pattern in quotes such as 'corpus/**/*.txt'")
    return files


def _walk(top: str) -> Iterator[str]:
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # what os.walk enters next
        yield from (str(Path(folder) / name) for name in sorted(names) if not name.startswith("."))


def module_digest(place: str) -> str:
    """A hash of the code that `module:name` is in."""
    module = place.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise HerdError(f"{place}: there is no module {module!r}; it is looked for where Python imports from")
    code = Path(spec.origin).read_bytes() if spec.origin and Path(spec.origin).is_file() else b""
    return hashlib.sha256(place.encode() + b"\0" + code).hexdigest()
