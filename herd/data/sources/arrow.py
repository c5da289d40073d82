"""Parquet, and the Arrow files of a folder that Hugging Face's `datasets` saved.

    train/data-00000-of-00001.arrow, dataset_info.json, state.json    →  its rows

Rows are read a few at a time, from the columns that are asked for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herd.data.sources.source import Notes, ReadOptions, Row, Unreadable

_ROWS = 256


def read_parquet(path: Path, options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """The rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            # A name with a dot is of a column within one.
            wanted = [name for name in names if name in {column.partition(".")[0] for column in options.columns}]
            batches = file.iter_batches(_ROWS, columns=wanted or None)
            yield from _rows(batches, path, notes)
    except pyarrow.ArrowInvalid as error:
        raise Unreadable("files that are not Parquet", _first(error)) from None


def read_arrow(path: Path, options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """The rows of an Arrow file, as a stream or with a footer."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as memory:
            try:
                batches: Any = pyarrow.ipc.open_stream(memory)
            except pyarrow.ArrowInvalid:
                memory.seek(0)
                file = pyarrow.ipc.open_file(memory)
                batches = (file.get_batch(index) for index in range(file.num_record_batches))
            parts = (batch.slice(at, _ROWS) for batch in batches for at in range(0, batch.num_rows, _ROWS))
            yield from _rows(parts, path, notes)
    except pyarrow.ArrowInvalid as error:
        raise Unreadable("files that are not Arrow", _first(error)) from None


def _rows(batches: Any, path: Path, notes: Notes) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Row(place=f"{path} row {number}", values=values, folder=path.parent)
    if not number:
        notes.skip("empty files", path)


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0][:100].rstrip(".")
