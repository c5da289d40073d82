"""The Parquet files of a data folder: their columns, and whole-or-absent writing."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from herd.core.files import naming_full_disk

_STRING, _BINARY = pyarrow.string(), pyarrow.binary()

TEXT = pyarrow.schema([(name, _STRING) for name in ("id", "split", "language", "source", "text")])
BOOKS = pyarrow.schema([(name, _STRING) for name in ("source", "language", "text")])
PICTURES = pyarrow.schema(
    [
        *((name, _STRING) for name in ("id", "split", "source", "subject")),
        ("png", _BINARY),
        ("names", _STRING),
        ("captions", _STRING),
    ]
)
CLIPS = pyarrow.schema(
    [
        *((name, _STRING) for name in ("id", "split", "subject")),
        ("frames", pyarrow.list_(_BINARY)),
        ("seconds", pyarrow.list_(pyarrow.float64())),
        ("names", _STRING),
    ]
)
CHATS = pyarrow.schema(
    [(name, _STRING) for name in ("id", "split", "kind", "language", "messages", "answer", "verifier")]
)


def write(path: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema) -> None:
    """Write `rows` to `path`; a reader sees the whole file or none."""
    temporary = path.with_suffix(".tmp")
    with naming_full_disk(path):
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), temporary, compression="zstd")
    os.replace(temporary, path)


def read(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of `path`, these columns of them."""
    rows: list[dict[str, Any]] = parquet.read_table(path, columns=columns).to_pylist()
    return rows


def to_json(value: Any) -> str:
    """How names, captions and messages stand in their columns."""
    return json.dumps(value, ensure_ascii=False)
