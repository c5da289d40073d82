"""Writes that are whole or absent, and the hash of what was written.

A file is written beside its place and renamed. A folder is written as `NAME.partial` and renamed when its
`herd.json` is in it, so a folder under its final name is always complete.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from herd.errors import HerdError


def cache_folder() -> Path:
    """`$HERD_CACHE`, else `~/.cache/herd`."""
    return Path(os.environ.get("HERD_CACHE") or Path.home() / ".cache" / "herd").expanduser()


def read_bytes(path: Path) -> bytes:
    """The contents of a file that a user names; one line where there are none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise HerdError(f"{path} does not exist") from None
    except OSError as error:
        raise HerdError(f"{path} cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """The text of a file that a user names; one line where it is not UTF-8."""
    data = read_bytes(path)
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise HerdError(f"{path} line {line}: the byte 0x{byte:02x} is not UTF-8: save the file as UTF-8") from None


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or one that it came from, is a full disk; some libraries have no OSError for it."""
    below = error.__cause__ or error.__context__
    here = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    return here or "No space left" in str(error) or (below is not None and is_disk_full(below))


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Within, a full disk is an OSError that names `path`, whatever a library makes of it."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


@contextmanager
def lock_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock `folder`, which is made if absent, for this process; where another holds it, `wait` for it or raise
    HerdError. The lock ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise HerdError(f"another herd works in {folder}: wait until it is done, or give another folder") from None
        yield
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming_full_disk(path), os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Force a file to the disk; of a folder, its list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is named in the error."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HerdError(f"{path} is missing: is {path.parent} a complete folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HerdError(f"{path} is not valid JSON ({error}): restore it or write the folder again") from None


def work_folder(folder: Path) -> Path:
    """Where the unfinished work for `folder` is."""
    return folder.with_name(folder.name + ".partial")


def free_name(folder: Path) -> Path:
    """`NAME.1`, `NAME.2` …: the first that neither a folder nor unfinished work has."""
    numbered = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
    return next(path for path in numbered if not path.exists() and not work_folder(path).exists())


def commit_folder(folder: Path) -> Path | None:
    """Rename the finished `NAME.partial` to `NAME`. An older `NAME` is kept under a free name, which is returned."""
    work, aside = work_folder(folder), None
    assert (work / "herd.json").exists(), f"{work} has no herd.json yet"
    if folder.exists():
        aside = free_name(folder)
        folder.rename(aside)
    work.rename(folder)
    return aside


def sha256(path: Path) -> str:
    """Hex digest of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ADDED_LATER = ("tokens-", "book-tokens-", "chat-lengths-")
"""What is written into a finished data folder when a model trains on it."""


def files_hash(paths: Sequence[Path]) -> str:
    """The digest of a file; of several, one over their names and contents."""
    if len(paths) == 1:
        return sha256(paths[0])
    lines = "".join(f"{path.name} {sha256(path)}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()


def folder_hash(folder: Path, *, without: str | None = None) -> str:
    """Digest over the paths and contents of all files in `folder`; `herd.json`, metrics, hidden files, tokens that were
    added for another tokenizer and what is called `without` aside."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in place.parts) or place.parts[0].startswith(ADDED_LATER)
        if path.is_file() and not hidden and place.parts[0] not in {"herd.json", "metrics.jsonl", without}:
            digest.update(f"{place.as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()
