r"""Text and Markdown: a file is a document; one that is long is cut into several at the ends of lines.

notes/monday.txt    →  {"text": "Monday\n\nThe harbour was quiet …"}
"""

from collections.abc import Iterator
from pathlib import Path

from herd.data.sources.source import Notes, ReadOptions, Row
from herd.data.sources.stream import lines, open_text

_SLACK = 1.25
"""How far a part may grow beyond its size to end before a blank line."""


def read_plain(path: Path, options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """The documents of a text file."""
    part: list[str] = []
    size = count = 0
    skipped = notes.skipped.total()
    with open_text(path, options.encoding) as file:
        for _, line in lines(file, notes, path):
            full = options.part_chars and size >= options.part_chars
            if full and (not line.strip() or size >= _SLACK * options.part_chars):
                count += 1
                yield _row(path, part, count)
                part, size = [], 0
            part.append(line)
            size += len(line) + 1
    if part:
        yield _row(path, part, count + 1 if count else 0)
    elif not count and notes.skipped.total() == skipped:
        notes.skip("empty files", path)


def _row(path: Path, part: list[str], number: int) -> Row:
    return Row(place=f"{path} part {number}" if number else str(path), values={"text": "\n".join(part)})
