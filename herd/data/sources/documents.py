"""Documents from rows of any kind of file.

{"text": "Monday …", "url": …}                      →  Document(text="Monday …", source="notes", page="… row 1")
{"page": {"body": "Monday …"}}, text="page.body"    →  the same
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from herd.config.sources import TextSource
from herd.core.inputs import InputFile
from herd.data.sources.columns import TEXT, no_columns, text_column
from herd.data.sources.readers import read_rows
from herd.data.sources.source import MAX_ROW_CHARS, Notes, ReadOptions
from herd.data.text.documents import Document

SMALLEST_PART, LARGEST_PART = 4_000, 200_000
PARTS = 16
"""A text file that is a larger share of all text than one part in so many is cut, so that a part can be held out."""


def part_chars(files: Sequence[InputFile]) -> int:
    """How long a document from a text file may be."""
    return max(SMALLEST_PART, min(LARGEST_PART, sum(file.size for file in files) // PARTS))


class Documents:
    """The documents of a text source."""

    def __init__(self, config: TextSource, files: Sequence[InputFile], notes: Notes, *, part_chars: int) -> None:
        self.config, self.files, self.notes = config, files, notes
        columns = (config.text,) if config.text else ()
        self.options = ReadOptions(encoding=config.encoding, part_chars=part_chars, columns=columns)

    @property
    def name(self) -> str:
        return self.config.name

    def __iter__(self) -> Iterator[Document]:
        """Raises HerdError where the first row of a file has no column with text."""
        config, before, column = self.config, None, self.config.text
        for row in read_rows(config.path, self.files, self.options, self.notes):
            file = row.place.rpartition(" row ")[0]
            if file != before and not config.text:  # the first row decides for the whole file
                column = text_column(row.values) or ""
            text = value_at(row.values, column) if column else None
            if file != before and column.partition(".")[0] not in row.values and column not in row.values:
                wanted = (config.text,) if config.text else TEXT
                nested = next((name for name in TEXT if isinstance(row.values.get(name), Mapping)), "")
                inner = f"{nested}.{next(iter(row.values[nested]), 'body')}" if nested else "body"
                fix = f'Give its name, such as text = "{inner}" in [[data.text]]'
                raise no_columns(row.place, row.values, "text", wanted, fix)
            before = file
            if not isinstance(text, str):
                self.notes.skip("rows whose text is none", row.place, type(text).__name__)
            elif not text.strip():
                self.notes.skip("rows with an empty text", row.place)
            elif len(text) > MAX_ROW_CHARS:
                self.notes.skip(f"documents of more than {MAX_ROW_CHARS:,} characters", row.place)
            else:
                yield Document(language=config.language, source=config.name, page=row.place, text=text)


def value_at(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column, with dots into nested ones; None if there is none."""
    if column in values:
        return values[column]
    value: Any = values
    for key in column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value
