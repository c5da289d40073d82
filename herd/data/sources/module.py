"""Rows from Python code outside Herd: `module:name` names an iterable of rows, or a function that returns one.

# mine.py                                    path = "mine:letters"
def letters():
    for letter in open_archive():
        yield {"text": letter.body}          # or the text alone
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from herd.data.sources.source import Notes, Row
from herd.errors import HerdError, unknown


def read_module(place: str, notes: Notes) -> Iterator[Row]:
    """The rows of an object. Raises HerdError where there is none."""
    found = load_object(place)
    values = found() if callable(found) else found
    try:
        rows = iter(values)
    except TypeError:
        raise HerdError(f"{place} gives {type(values).__name__}, not rows: yield dictionaries or texts") from None
    for number, value in enumerate(rows, 1):
        where = f"{place} row {number}"
        if isinstance(value, str):
            value = {"text": value}
        if isinstance(value, Mapping):
            yield Row(place=where, values=value)
        else:
            notes.skip("rows that are neither dictionaries nor texts", where, type(value).__name__)


def load_object(place: str) -> Any:
    """The object at `module:name`. Raises HerdError where there is none."""
    module, _, name = place.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise HerdError(f"{place}: {module} cannot be imported ({error})") from None
    if not hasattr(found, name):
        raise unknown(f"name in {module}:", name, [known for known in dir(found) if not known.startswith("_")])
    return getattr(found, name)
