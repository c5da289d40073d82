"""What files are, found by looking: documents by their suffix, rows by the columns of the first one.

    corpus/a.txt, corpus/b.txt, corpus/chats.jsonl    →  text "corpus/**/*.txt", chats "corpus/**/*.jsonl" (sharegpt)

Files of one suffix that are of one kind become one source. Nothing but first rows is read, so that it takes seconds
however large the files are. Imports no torch.
"""

import glob
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from herd.config.sources import (
    ChatSource,
    ImageSource,
    PreferenceSource,
    PromptSource,
    SourceConfig,
    TextSource,
    VideoSource,
)
from herd.core.inputs import InputFile, find_files, is_module
from herd.data.sources.captioned import Parts, kind_of_tar, media_files
from herd.data.sources.columns import CHATS, TEXT, kind_of_rows, no_columns
from herd.data.sources.media_names import SUFFIXES
from herd.data.sources.module import read_module
from herd.data.sources.readers import DOCUMENTS, files_of, kind_of, read_file, readable
from herd.data.sources.source import Notes, ReadOptions, Row
from herd.errors import HerdError

KINDS: dict[str, type[SourceConfig]] = {
    "text": TextSource,
    "chats": ChatSource,
    "preferences": PreferenceSource,
    "prompts": PromptSource,
    "images": ImageSource,
    "videos": VideoSource,
}
"""Kinds of sources: the fields of `DataConfig`."""
LOOKED_AT = 20
"""Files of one folder and suffix that are looked into; where these are of one kind, the others are taken for it too."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Files that are taken for one source."""

    kind: str
    """One of KINDS."""
    form: str
    """In which form: the suffix of documents, the format or the columns of rows."""
    path: str
    files: Sequence[InputFile]
    name: str = ""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def detect(paths: Sequence[str], notes: Notes, *, kind: str = "") -> list[Found]:
    """What is at each of the paths, all of `kind` if given. Raises HerdError where there is nothing to read."""
    found = [one for path in paths for one in _named(list(_detect(path, notes, kind)), path)]
    names: dict[str, int] = {}
    unique = []
    for one in found:
        names[one.name] = names.get(one.name, 0) + 1
        unique.append(replace(one, name=f"{one.name}-{names[one.name]}") if names[one.name] > 1 else one)
    return unique


def sources_of(found: Sequence[Found]) -> dict[str, tuple[Any, ...]]:
    """The fields of a DataConfig."""
    return {
        kind: tuple(source(path=one.path, name=one.name) for one in found if one.kind == kind)
        for kind, source in KINDS.items()
    }


def table(found: Sequence[Found]) -> Iterator[str]:
    """What each source is taken for, a line each."""
    rows = [("kind", "form", "files", "MB", "source"), *(_line(one) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        numbers = " ".join(row[column].rjust(widths[column]) for column in (2, 3))
        yield f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {numbers}  {row[4]}"


def _line(one: Found) -> tuple[str, str, str, str, str]:
    return one.kind, one.form, f"{len(one.files):,}", f"{one.size / 1e6:,.2f}", one.path


def _named(found: list[Found], path: str) -> list[Found]:
    """The sources named after the path and, where there are several, after what they hold."""
    fixed = [part for part in Path(path).parts if not set(part) & set("*?[")]
    base = (fixed[-1] if fixed else path).lstrip(".").partition(".")[0] or "data"
    if is_module(path):
        base = path.partition(":")[2]
    whole = len(found) == 1 and found[0].path == path
    return [replace(one, name=base if whole else _part_name(one, base)) for one in found]


def _part_name(one: Found, base: str) -> str:
    """A file's name, or that of the whole with what these files of it are."""
    if one.kind in SUFFIXES:
        return f"{base}-{one.kind}"
    if len(one.files) == 1:
        return one.files[0].path.name.partition(".")[0]
    return f"{base}-{_suffix(one.files[0].path).strip('.').partition('.')[0]}"


def _detect(path: str, notes: Notes, kind: str) -> Iterator[Found]:
    if is_module(path):
        first = next(read_module(path, notes), None)
        if first is None:
            raise HerdError(f"{path} gives no rows")
        name, form = _kind_of_row(first, kind)
        yield Found(kind=name, form=form, path=path, files=())
        return
    media = list(_media(path, kind, notes))
    yield from media
    if kind in SUFFIXES:
        return
    used = {file.path for one in media for file in one.files}
    if media and not (rest := [file for file in find_files(path) if file.path not in used]):
        return
    files = readable(rest, notes) if media else files_of(path, notes)
    if not files:
        return
    kinds: dict[Path, tuple[str, str]] = {}
    for group in _by_place(files):
        for file in group[:LOOKED_AT]:
            kinds[file.path] = _kind_or_skip(file.path, kind, notes)
        found = {kinds[file.path] for file in group[:LOOKED_AT]}
        for file in group[LOOKED_AT:]:
            kinds[file.path] = next(iter(found)) if len(found) == 1 else _kind_or_skip(file.path, kind, notes)
    if not any(what for what, _ in kinds.values()):
        for group in _by_place(files):
            for file in group[:LOOKED_AT]:
                _kind_of_file(file.path, kind, Notes())  # raises why, where rows are of no known kind
        raise HerdError(f"{path}: there is no row in it to read ({'; '.join(notes.lines())})")
    yield from _patterns(path, files, kinds, alone=not media)


def skip_unread(path: str, read: Set[Path], notes: Notes) -> None:
    """Count the files at `path` that are not among those that are `read`, with the reasons of `detect`."""
    if not is_module(path):
        for file in readable([file for file in find_files(path) if file.path not in read], notes):
            if _kind_or_skip(file.path, "", notes)[0]:
                notes.skip("files of a kind that was not asked for", file.path)


def _media(path: str, kind: str, notes: Notes) -> Iterator[Found]:
    """Pictures and videos with captions beside them or in a tar, where no other kind is asked for."""
    if kind not in {"", *SUFFIXES}:
        return
    paths = [file.path for file in find_files(path)]
    tars = {tar: kind_of_tar(tar, notes) for tar in paths if tar.suffix.lower() == ".tar"}
    for name, suffixes in SUFFIXES.items():
        if kind and kind != name:
            continue
        parts = Parts.of(paths, suffixes)
        facts = [table for table in parts.tables if table.name.startswith("metadata.") and parts.media]
        own = [tar for tar in tars if tars[tar] == name]
        if kind or parts.captions or facts or own:
            form = "WebDataset" if own else "with captions"
            yield Found(kind=name, form=form, path=path, files=media_files(path, suffixes))


def _by_place(files: Sequence[InputFile]) -> list[list[InputFile]]:
    """The files of each folder and suffix."""
    groups: dict[tuple[Path, str], list[InputFile]] = {}
    for file in files:
        groups.setdefault((file.path.parent, _suffix(file.path)), []).append(file)
    return list(groups.values())


def _suffix(path: Path) -> str:
    """The suffixes that decide how a file is read: `.jsonl.zst`."""
    kind = kind_of(path)
    return path.name[path.name.lower().rindex(kind) :]


def _kind_or_skip(path: Path, kind: str, notes: Notes) -> tuple[str, str]:
    """Kind and form of a file; empty, and counted, where its rows are of no known kind."""
    try:
        return _kind_of_file(path, kind, notes)
    except HerdError as error:
        notes.skip("files whose rows are of no known kind", path, str(error).partition(": ")[2])
        return "", ""


def _kind_of_file(path: Path, kind: str, notes: Notes) -> tuple[str, str]:
    if kind_of(path) in DOCUMENTS:
        if kind not in {"", "text"}:
            raise HerdError(f"{path}: {kind} are rows, this is a document: give JSON lines, JSON, CSV or Parquet")
        return "text", _suffix(path)
    own = Notes()
    first = next(read_file(path, ReadOptions(), own), None)
    if first is None:  # else it is read again, and counted then
        notes.merge(own)
        return "", ""
    return _kind_of_row(first, kind)


def _kind_of_row(row: Row, kind: str) -> tuple[str, str]:
    """Kind and form of rows by their first one; of the `kind` that was asked for, if one was."""
    found = kind_of_rows(row.values)
    if kind and (found is None or found[0] != kind):
        return kind, "by its columns"  # where they are missing, reading the source raises
    if found is None:
        wanted = [*TEXT[:3], *(name for names in CHATS.values() for name in names), "chosen", "rejected"]
        raise no_columns(row.place, row.values, "text, chat, preference or prompt", wanted, "See docs/your-data.md")
    return found


def _patterns(
    path: str, files: Sequence[InputFile], kinds: dict[Path, tuple[str, str]], *, alone: bool
) -> Iterator[Found]:
    """The sources that files of one kind make: the whole path if they are `alone` in it, a pattern in it or in one of
    its folders, or a file."""
    known = [file for file in files if kinds[file.path][0]]
    one_kind = len({kinds[file.path] for file in files}) == 1 and len({_suffix(file.path) for file in files}) == 1
    if alone and one_kind and known:
        yield _found(path, known, kinds)
        return
    by_suffix: dict[str, list[InputFile]] = {}
    for file in known:
        by_suffix.setdefault(_suffix(file.path), []).append(file)
    for suffix, of_suffix in by_suffix.items():
        whole = [file for file in files if _suffix(file.path) == suffix]
        if Path(path).is_dir() and len({kinds[file.path] for file in whole}) == 1:
            yield _found(f"{glob.escape(path.rstrip('/'))}/**/*{suffix}", of_suffix, kinds)
            continue
        for group in _by_place(of_suffix):
            folder = group[0].path.parent
            beside = [file for file in whole if file.path.parent == folder]
            if len({kinds[file.path] for file in beside}) == 1 and len(group) > 1:
                yield _found(f"{glob.escape(str(folder))}/*{suffix}", group, kinds)
            else:
                for file in group:
                    yield _found(str(file.path), [file], kinds)


def _found(path: str, files: Sequence[InputFile], kinds: dict[Path, tuple[str, str]]) -> Found:
    kind, form = kinds[files[0].path]
    return Found(kind=kind, form=form, path=path, files=files)
