r"""JSON lines, and JSON files with an array of objects or with objects one after the other.

    {"text": "Monday …"}\n{"text": "Tuesday …"}\n        →  two rows
    [{"text": "Monday …"}, {"text": "Tuesday …"}]        →  two rows
    {"version": 1, "data": [{"text": "Monday …"}, …]}    →  the rows of its one list of objects

An array is read piece by piece and never held whole. A list of messages alone is a row too: `{"messages": […]}`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from herd.data.sources.source import MAX_ROW_CHARS, Notes, ReadOptions, Row, Unreadable
from herd.data.sources.stream import decode_escaped, lines, open_text

_CHUNK = 2**16
_NOT_JSON = "rows that are not JSON"
_BROKEN = "files that are not JSON to their end"
_NO_OBJECTS = "rows that are no JSON objects"


def read_jsonl(path: Path, options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """A row a line; blank lines are none."""
    empty = True
    with open_text(path, options.encoding) as file:
        for number, line in lines(file, notes, path):
            if not line.strip():
                continue
            empty, place = False, f"{path} row {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                notes.skip(_NOT_JSON, place, str(error) or type(error).__name__)
                continue
            yield from _row(value, place, path, notes)
    if empty:
        notes.skip("empty files", path)


def read_json(path: Path, options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """The rows of an array, or of values one after the other."""
    number = 0
    with open_text(path, options.encoding) as file:
        for number, value in enumerate(_values(file), 1):
            inner = _rows_inside(value)
            if inner is None:
                yield from _row(value, f"{path} row {number}", path, notes)
            else:
                for count, item in enumerate(inner, 1):
                    yield from _row(item, f"{path} row {count}", path, notes)
    if not number:
        notes.skip("empty files", path)


def _row(value: Any, place: str, path: Path, notes: Notes) -> Iterator[Row]:
    if isinstance(value, str):
        value = {"text": value}
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {"messages": value}
    if isinstance(value, dict):
        yield Row(place=place, values=value, folder=path.parent)
    else:
        notes.skip(_NO_OBJECTS, place, type(value).__name__)


def _rows_inside(value: Any) -> list[Any] | None:
    """The rows of an object that has nothing but one list of objects beside short facts about them."""
    if not isinstance(value, Mapping) or value.keys() & {"messages", "conversations"}:
        return None
    lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    facts = [item for item in value.values() if not isinstance(item, list)]
    return lists[0] if len(lists) == 1 and all(isinstance(item, (str, int, float)) for item in facts) else None


def _values(file: TextIO) -> Iterator[Any]:
    """The values of a text, or of the array that it is, decoded as soon as each is whole."""
    decoder, text, at, in_array = json.JSONDecoder(), "", 0, False
    chunk, ended, first = _CHUNK, False, True
    while True:
        while at < len(text) and (text[at].isspace() or (text[at] in ",\ufeff" and (in_array or first))):
            at += 1
        if at < len(text) and first and text[at] == "[":
            in_array, first, at = True, False, at + 1
            continue
        if at < len(text) and in_array and text[at] == "]":
            return
        if at < len(text):
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                if ended or isinstance(error, RecursionError):
                    raise Unreadable(_BROKEN, str(error) or type(error).__name__) from None
            else:
                # A number at the end of what was read may go on.
                if end < len(text) or ended:
                    yield value
                    first, at, chunk = False, end, _CHUNK
                    continue
        elif ended:
            if in_array:
                raise Unreadable(_BROKEN, "the array is not closed")
            return
        more = file.read(chunk)
        ended = not more
        text, at = text[at:] + decode_escaped(more)[0], 0
        if len(text) > 2 * MAX_ROW_CHARS:
            raise Unreadable(f"files with a value of more than {2 * MAX_ROW_CHARS:,} characters: use JSON lines")
        chunk = max(_CHUNK, len(text))  # so that a long value is tried a few times only
