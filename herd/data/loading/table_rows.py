"""Rows of a table by their number, in bounded memory: a group of rows is read at a time, the last ones are kept."""

import hashlib
import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from herd.data.loading import tables

CACHE_BYTES = 2**26
"""What is kept of a table, in bytes of memory; at least one group."""

V = TypeVar("V")


class Cache(Generic[V]):
    """Values by number: those that were used last, up to so many bytes. For several threads."""

    def __init__(self, most_bytes: int, size_of: Callable[[V], int]) -> None:
        self.most_bytes, self._size_of = most_bytes, size_of
        self._kept: OrderedDict[int, V] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()

    def get(self, number: int, make: Callable[[int], V]) -> V:
        """The value of `number`, made if it is not kept."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            value = make(number)
            self._kept[number] = value
            self._bytes += self._size_of(value)
            while self._bytes > self.most_bytes and len(self._kept) > 1:
                self._bytes -= self._size_of(self._kept.popitem(last=False)[1])
            return value


class TableRows:
    """Some columns of a table of a data folder, by the number of the row."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, list(columns)
        tables.check_columns(path, columns)
        self._file = parquet.ParquetFile(path, pre_buffer=False)
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._begins = np.cumsum([0, *sizes])
        self._groups: Cache[pyarrow.Table] = Cache(CACHE_BYTES, lambda table: int(table.nbytes))

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._begins, number, side="right")) - 1
        table = self._groups.get(group, self._read)
        row = number - int(self._begins[group])
        return {name: table.column(name)[row].as_py() for name in self.columns}

    def _read(self, group: int) -> pyarrow.Table:
        return self._file.read_row_group(group, self.columns)


def training_numbers(path: Path) -> np.ndarray:
    """int64, the numbers of the training rows of a table."""
    tables.check_columns(path, ["split"])
    found, begin = [np.empty(0, np.int64)], 0
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(4096, columns=["split"]):
            is_train = batch.column(0).to_numpy(zero_copy_only=False) == "train"
            found.append(np.flatnonzero(is_train) + begin)
            begin += batch.num_rows
    return np.concatenate(found)


class NamedRows:
    """The training rows of the pictures or clips of a data folder, those with names first: a chat may show one that has
    a caption only. A folder without the table has none. In memory are 24 bytes a row."""

    def __init__(self, folder: Path, table: str, columns: Sequence[str]) -> None:
        path, named, nameless = folder / f"{table}.parquet", array("q"), array("q")
        hashes: dict[bool, array[int]] = {True: array("Q"), False: array("Q")}
        if tables.has(folder, table):
            tables.check_columns(path, ["id", "split", "names", *columns])
            self._light, self._rows = TableRows(path, ["id", "names"]), TableRows(path, columns)
            for number, row in enumerate(tables.rows(path, ["id", "split", "names"])):
                if row["split"] == "train":
                    has_names = row["names"] != "{}"
                    (named if has_names else nameless).append(number)
                    hashes[has_names].append(_hash(row["id"]))
        self.num_named = len(named)
        self._numbers = np.array([*named, *nameless], np.int64)
        ids = np.array([*hashes[True], *hashes[False]], np.uint64)
        self._order = np.argsort(ids)
        self._ids = ids[self._order]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The columns of a row."""
        return self._rows[self.number(index)]

    def number(self, index: int) -> int:
        """Of the row in the table."""
        return int(self._numbers[index])

    def names(self, index: int) -> dict[str, str]:
        """By language."""
        names: dict[str, str] = json.loads(self.spelt(index))
        return names

    def spelt(self, index: int) -> str:
        """The names as they are in the table."""
        return str(self._light[self.number(index)]["names"])

    def id(self, index: int) -> str:
        """The id of a row."""
        return str(self._light[self.number(index)]["id"])

    def find(self, name: str) -> int | None:
        """The index of the row with this id; None where it is not one of training."""
        wanted = np.uint64(_hash(name))
        place = int(np.searchsorted(self._ids, wanted))
        return int(self._order[place]) if place < len(self._ids) and self._ids[place] == wanted else None


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
