"""Documents in a temporary file: written once, read in order or by number, so that memory holds only their places."""

import marshal
import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from herd.core.files import naming_full_disk
from herd.data.text.documents import Document


class Spool:
    """A list of documents that is on disk, in `folder` or the system's place for temporary files."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._ends = array("Q", [0])
        self._is_flushed = True

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, document: Document) -> int:
        """Write `document`; its number is what `spool[number]` takes."""
        data = marshal.dumps((document.language, document.source, document.page, document.text))
        with naming_full_disk(self._folder):
            self._file.write(data)
        self._is_flushed = False
        self._ends.append(self._ends[-1] + len(data))
        return len(self) - 1

    def __getitem__(self, number: int) -> Document:
        if not self._is_flushed:
            with naming_full_disk(self._folder):
                self._file.flush()
            self._is_flushed = True
        begin, end = self._ends[number], self._ends[number + 1]
        language, source, page, text = marshal.loads(os.pread(self._file.fileno(), end - begin, begin))
        return Document(language=language, source=source, page=page, text=text)

    def __iter__(self) -> Iterator[Document]:
        return map(self.__getitem__, range(len(self)))
