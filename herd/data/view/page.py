"""Rows of a data folder as one HTML page that needs nothing beside itself."""

import io
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import jinja2
from PIL import Image

from herd.core.files import write_atomic
from herd.data.view.items import Shown


def write_page(path: Path, title: str, shown: Sequence[Shown]) -> Path:
    """Write the page; a reader sees the whole file or none."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["png"] = png
    text = environment.get_template("page.html.j2").render(title=title, items=shown)
    write_atomic(path, text.encode())
    return path


def png(picture: Image.Image) -> str:
    """The picture as a data URI."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return f"data:image/png;base64,{b64encode(data.getvalue()).decode()}"
