"""CSV and TSV: the first line names the columns; quoted fields may hold line breaks.

text,lang            →  {"text": "Monday, 8 am", "lang": "en"}
"Monday, 8 am",en
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from herd.data.sources.source import MAX_ROW_CHARS, Notes, ReadOptions, Row, Unreadable
from herd.data.sources.stream import lines, open_text


def read_csv(path: Path, options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """The rows of a table with commas, semicolons or tabs between its columns."""
    csv.field_size_limit(MAX_ROW_CHARS)
    with open_text(path, options.encoding) as file:
        numbered = lines(file, notes, path)
        header = next((line for _, line in numbered if line.strip()), "")
        if not header:
            notes.skip("empty files", path)
            return
        mark = max("\t;,", key=header.count) if ".tsv" not in path.suffixes else "\t"
        [columns] = csv.reader([header], delimiter=mark)
        quotes = 0

        def fed() -> Iterator[str]:
            nonlocal quotes
            for _, line in numbered:
                quotes += line.count('"')
                yield line + "\n"

        table = csv.reader(fed(), delimiter=mark)
        number = 1
        while True:
            number += 1
            try:
                fields = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                raise Unreadable("tables with a row that is none: is a quote not closed?", str(error)) from None
            if quotes % 2 and any(field.endswith("\n") for field in fields):  # it ends with the file alone
                notes.skip("rows whose quote is not closed", f"{path} row {number}")
                continue
            if not fields:
                continue
            if len(fields) != len(columns):
                notes.skip(
                    "rows with another number of columns than the header", f"{path} row {number}",
                    f"{len(fields)} for {len(columns)}",
                )  # fmt: skip
                continue
            yield Row(place=f"{path} row {number}", values=dict(zip(columns, fields, strict=True)), folder=path.parent)
