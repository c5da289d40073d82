"""The Parquet files of a data folder: their columns and rows, reading, and whole-or-absent writing."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from herd.core.files import naming_full_disk
from herd.errors import HerdError

_STRING, _BINARY = pyarrow.string(), pyarrow.binary()

TEXT = pyarrow.schema(
    [*((name, _STRING) for name in ("id", "split", "language", "source", "text")), ("repeat", pyarrow.int32())]
)
"""`repeat`: how often a document is trained on in an epoch."""
BOOKS = pyarrow.schema([(name, _STRING) for name in ("source", "language", "text")])
PICTURES = pyarrow.schema(
    [
        *((name, _STRING) for name in ("id", "split", "source", "subject")),
        ("png", _BINARY),
        ("names", _STRING),
        ("captions", _STRING),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
    ]
)
"""Pictures are read one by one: their sizes are there to plan without opening them."""
CLIPS = pyarrow.schema(
    [
        *((name, _STRING) for name in ("id", "split", "subject")),
        ("frames", pyarrow.list_(_BINARY)),
        ("seconds", pyarrow.list_(pyarrow.float64())),
        ("names", _STRING),
    ]
)
CHATS = pyarrow.schema(
    [
        (name, _STRING)
        for name in ("id", "split", "kind", "language", "messages", "answer", "verifier", "source", "tools")
    ]
)
PREFERENCES = pyarrow.schema(
    [(name, _STRING) for name in ("id", "split", "source", "prompt", "chosen", "rejected", "tools")]
)
PROMPTS = pyarrow.schema([(name, _STRING) for name in ("id", "split", "source", "prompt", "answer", "verifier")])

GROUP_ROWS, GROUP_CHARS = 4096, 32 * 2**20
"""A group of rows is written when it has so many, or so much text."""
SMALL_GROUP_ROWS, SMALL_GROUP_CHARS = 256, 2**21
"""The same of tables whose rows training reads in any order: a group is read for one of its rows."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture and what it is called; columns that were not read are empty."""

    id: str
    split: str
    """`train`, `subjects` or `styles`."""
    source: str = ""
    """`tuxpaint`, `emoji`, `fluent`, `icon` or `flag`."""
    subject: str = ""
    """What it shows: the same for all drawings of it."""
    png: bytes = b""
    names: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A few frames of an animation with their times from its beginning; columns that were not read are empty."""

    id: str
    split: str = ""
    subject: str = ""
    frames: list[bytes] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


class Writer:
    """Writes a table group by group; a reader sees the whole file, when all rows are written, or none."""

    def __init__(self, path: Path, schema: pyarrow.Schema) -> None:
        self.path, self.schema = path, schema
        self.num_rows = 0
        self._temporary = path.with_suffix(".tmp")
        self._rows: list[dict[str, Any]] = []
        self._size = 0
        is_small = schema in (PICTURES, CLIPS, CHATS)
        self._most = (SMALL_GROUP_ROWS, SMALL_GROUP_CHARS) if is_small else (GROUP_ROWS, GROUP_CHARS)

    def __enter__(self) -> Self:
        with naming_full_disk(self.path):
            self._writer = parquet.ParquetWriter(self._temporary, self.schema, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
            with naming_full_disk(self.path):
                self._writer.close()
            if error is None:
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def add(self, row: dict[str, Any]) -> None:
        """Write one row, now or with others."""
        self._rows.append(row)
        self.num_rows += 1
        self._size += sum(_size(value) for value in row.values())
        if len(self._rows) >= self._most[0] or self._size >= self._most[1]:
            self._flush()

    def add_table(self, table: pyarrow.Table) -> None:
        """Write a group of rows as it is."""
        self._flush()
        self.num_rows += table.num_rows
        with naming_full_disk(self.path):
            self._writer.write_table(table)

    def _flush(self) -> None:
        rows, self._rows, self._size = self._rows, [], 0
        if rows:
            with naming_full_disk(self.path):
                self._writer.write_table(pyarrow.Table.from_pylist(rows, self.schema))


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, (str, bytes)) else 0


def write(path: Path, rows: Iterable[dict[str, Any]], schema: pyarrow.Schema) -> None:
    """Write `rows` to `path`; a reader sees the whole file or none."""
    with Writer(path, schema) as table:
        for row in rows:
            table.add(row)


def has(folder: Path, name: str) -> bool:
    """Whether a data folder has a table; those that nothing was there for are absent."""
    return (folder / f"{name}.parquet").exists()


def rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a table, a few hundred in memory at a time."""
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(256, columns=None if columns is None else list(columns)):
            yield from batch.to_pylist()


def read(
    folder: Path, name: str, columns: Sequence[str] | None = None, *, optional: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of one table of a data folder, these columns of them or all; the optional ones where it has them.

    Raises HerdError where the folder has no such table.
    """
    present = check_columns(path := folder / f"{name}.parquet", columns or ())
    wanted = None if columns is None else [*columns, *(column for column in optional if column in present)]
    found: list[dict[str, Any]] = parquet.read_table(path, columns=wanted).to_pylist()
    pyarrow.default_memory_pool().release_unused()  # it would keep what no one reads again: 150 MB of the tiny data
    return found


def first_texts(folder: Path, split: str, most: int) -> dict[str, list[str]]:
    """Of each language the first documents of a split, at most so many; text of others is not read."""
    check_columns(path := folder / "text.parquet", ["split", "language", "text"])
    wanted: dict[int, list[tuple[str, int]]] = {}
    counts: Counter[str] = Counter()
    texts: dict[str, list[str]] = {}
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, ["split", "language"])
            places = compute.indices_nonzero(compute.equal(table["split"], split))
            for place, language in zip(places.to_pylist(), table["language"].take(places).to_pylist(), strict=True):
                if counts[language] < most:
                    counts[language] += 1
                    wanted.setdefault(group, []).append((language, place))
        texts = {language: [] for language in counts}
        for group, places in wanted.items():
            column = file.read_row_group(group, ["text"])["text"]
            for language, place in places:
                texts[language].append(column[place].as_py())
    return texts


def check_columns(path: Path, columns: Sequence[str]) -> list[str]:
    """The columns of a table. Raises HerdError where it is missing or lacks any of `columns`."""
    if not path.exists():
        raise HerdError(
            f"{path.parent} has no {path.stem} ({path.name} is missing): give a data folder with {path.stem}"
        )
    present: list[str] = parquet.read_schema(path).names
    if missing := [column for column in columns if column not in present]:
        raise HerdError(f"{path} lacks the column {', '.join(missing)}: it needs {', '.join(columns)}")
    return present


def to_json(value: Any) -> str:
    """How names, captions and messages stand in their columns."""
    return json.dumps(value, ensure_ascii=False)
