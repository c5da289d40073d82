"""The bytes and lines of a file: decompressed, decoded, and bounded in size.

Text is UTF-8 or UTF-16 with or without a BOM; bytes that are not UTF-8 are read as Windows-1252, each by itself, so
that files with both encodings come out right. CR and CRLF end lines as LF does. A compressed file that expands too
far, an archive inside a compressed file, and a binary file under the name of a text are refused.

    with open_text(Path("corpus.txt.gz")) as file:
        for number, line in lines(file, notes, "corpus.txt.gz"): ...
"""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from herd.data.sources.source import MAX_ROW_CHARS, Notes, Unreadable

MAX_EXPANSION = 200
"""How many times its size a compressed file may have; text has up to about 50 times."""
FREE_EXPANSION = 16 * 2**20
"""Bytes that a compressed file may have in any case."""
_BUFFER = 2**20
_HEAD = 8192
_MAX_CONTROLS = 0.02
"""Share of control characters from which on a file is no text."""

DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What the libraries raise for a damaged compressed file."""


def _zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".zst": _zstd,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""By the last suffix of a name."""

_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NOT_TEXT = bytes({*range(9), 11, *range(14, 27), *range(28, 32), 127})
_ESCAPED = re.compile("[\udc80-\udcff]+")


class _Bounded(io.RawIOBase):
    """What a decompressor gives, up to a multiple of what it was given."""

    def __init__(self, source: Any, size: int) -> None:
        self._source, self._left = source, FREE_EXPANSION + MAX_EXPANSION * size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise Unreadable(f"files that expand to more than {MAX_EXPANSION} times their size")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed by its last suffix. Raises Unreadable for an archive in it."""
    opener = OPENERS.get(path.suffix.lower())
    raw: Any = path.open("rb", buffering=0) if opener is None else _Bounded(opener(path), path.stat().st_size)
    with io.BufferedReader(raw, _BUFFER) as file:
        head = _peek(file)
        for magic, name in _ARCHIVES.items():
            if head.startswith(magic):
                inside = "archives in compressed files" if opener else "archives under the name of a text"
                raise Unreadable(f"{inside} ({name}): unpack them first")
        if head[257:262] == b"ustar":
            raise Unreadable("archives under the name of a text (tar): unpack them first")
        yield file


def _peek(file: io.BufferedReader) -> bytes:
    return file.peek(_HEAD)[:_HEAD]


def encoding_of(head: bytes) -> str:
    """The encoding of a text that begins with `head`: by its BOM, else UTF-16 where every other byte is 0, else UTF-8.

    Raises Unreadable where it is no text.
    """
    for bom, name in _BOMS.items():
        if head.startswith(bom):
            return name
    even, odd = head[::2].count(0), head[1::2].count(0)
    half = max(len(head) // 2, 1)
    if odd > 0.3 * half and even < 0.05 * half:
        return "utf-16-le"
    if even > 0.3 * half and odd < 0.05 * half:
        return "utf-16-be"
    if b"\0" in head or len(head) - len(head.translate(None, _NOT_TEXT)) > _MAX_CONTROLS * len(head):
        raise Unreadable("binary files under the name of a text")
    return "utf-8"


@contextmanager
def open_text(path: Path, encoding: str = "auto") -> Iterator[TextIO]:
    """The file's text with LF line ends; bytes that are not UTF-8 are escaped in it, see `decode_escaped`."""
    with open_bytes(path) as file:
        found = encoding_of(_peek(file)) if encoding == "auto" else encoding
        if found in {"utf-8", "utf-8-sig"}:
            errors = "surrogateescape"
        else:
            errors = "replace"
        yield io.TextIOWrapper(file, encoding=found, errors=errors, newline=None)


def _windows_1252(match: re.Match[str]) -> str:
    data = match[0].encode("utf-8", "surrogateescape")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def decode_escaped(text: str) -> tuple[str, bool]:
    """`text` with its bytes that were not UTF-8 read as Windows-1252; whether there were any."""
    if text.isascii():
        return text, False
    new, count = _ESCAPED.subn(_windows_1252, text)
    return new, count > 0


def lines(file: TextIO, notes: Notes, place: object) -> Iterator[tuple[int, str]]:
    """Numbers, from 1, and texts of the lines, without their ends; lines that are too long are skipped unread."""
    number = 0
    while line := file.readline(MAX_ROW_CHARS + 1):
        number += 1
        if len(line) > MAX_ROW_CHARS and not line.endswith("\n"):
            notes.skip(f"lines of more than {MAX_ROW_CHARS:,} characters", f"{place} line {number}")
            while (rest := file.readline(_BUFFER)) and not rest.endswith("\n"):
                pass
            continue
        text, was_other = decode_escaped(line.removesuffix("\n"))
        if was_other:
            notes.change(
                "lines not in UTF-8, read as Windows-1252: set encoding if they are not", f"{place} line {number}"
            )
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def read_whole(path: Path) -> bytes:
    """The bytes of a file of moderate size. Raises Unreadable for a larger one."""
    with open_bytes(path) as file:
        return bounded_bytes(file)


def bounded_bytes(file: BinaryIO) -> bytes:
    """All that is left in `file`. Raises Unreadable where that is too much for one document."""
    data = file.read(MAX_ROW_CHARS + 1)
    if len(data) > MAX_ROW_CHARS:
        raise Unreadable(f"documents of more than {MAX_ROW_CHARS:,} bytes in one piece")
    return data
