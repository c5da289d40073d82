"""Documents in files: written once, read in order or by number, so that memory holds only their places."""

import marshal
import os
import secrets
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from herd.core.files import naming_full_disk
from herd.data.text.documents import Document

OPEN_FILES = 100
"""Files that are open at a time."""


class SpoolWriter:
    """Writes `path` and, beside it, where each document ends. Both appear when it is left without an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # A process that was thought to be lost may still write the same.
        self._temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        self._ends = [0]

    def __enter__(self) -> Self:
        self._file = self._temporary.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with naming_full_disk(self.path):
                self._file.close()
                if error is None:
                    save_array(ends_file(self.path), np.array(self._ends, np.uint64))
                    os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def append(self, document: Document) -> None:
        """Write `document`; its number is what `spool[number]` takes."""
        data = marshal.dumps((document.language, document.source, document.page, document.text))
        with naming_full_disk(self.path):
            self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))


class Spool:
    """The documents of several files, one after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._ends = [np.load(ends_file(path)) for path in paths]
        self._begins = np.cumsum([0, *(len(ends) - 1 for ends in self._ends)]).tolist()
        self._open = lru_cache(OPEN_FILES)(lambda part: paths[part].open("rb", buffering=0))

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, number: int) -> Document:
        part = bisect_right(self._begins, number) - 1
        place = number - self._begins[part]
        begin, end = map(int, self._ends[part][place : place + 2])
        language, source, page, text = marshal.loads(os.pread(self._open(part).fileno(), end - begin, begin))
        return Document(language=language, source=source, page=page, text=text)

    def __iter__(self) -> Iterator[Document]:
        return map(self.__getitem__, range(len(self)))


def ends_file(path: Path) -> Path:
    """Where the places of the documents in `path` are."""
    return path.with_name(f"{path.name}.ends.npy")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array; a reader sees the whole file or none."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with naming_full_disk(path):
        with temporary.open("wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
