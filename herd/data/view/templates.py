"""The pages of this folder, rendered from the templates beside this file."""

import io
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image


def render(name: str, **values: Any) -> str:
    """The page of a template, every value escaped. Raises jinja2.UndefinedError for a value that is missing."""
    return _environment().get_template(name).render(**values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"count": _count, "png": png}
    return environment


def _count(value: Any) -> Any:
    return f"{value:,}" if isinstance(value, int) else value


def png(picture: Image.Image) -> str:
    """The picture as a data URI."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return f"data:image/png;base64,{b64encode(data.getvalue()).decode()}"
