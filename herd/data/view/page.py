"""Rows of a data folder as one HTML page that needs nothing beside itself."""

from collections.abc import Sequence
from pathlib import Path

from herd.core.files import write_atomic
from herd.data.view.items import Shown
from herd.data.view.templates import render


def write_page(path: Path, title: str, shown: Sequence[Shown]) -> Path:
    """Write the page; a reader sees the whole file or none."""
    write_atomic(path, render("page.html.j2", title=title, items=shown).encode())
    return path
