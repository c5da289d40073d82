"""HTML: a page is a document, its text without scripts, navigation and tags, one block a line.

page.html: <body><nav>Home</nav><h1>Tea</h1><p>Boil water.</p></body>    →  {"text": "Tea\\nBoil water."}
"""

import re
from collections.abc import Iterator
from pathlib import Path

from herd.data.sources.source import Notes, ReadOptions, Row
from herd.data.sources.stream import decode_escaped, encoding_of, read_whole

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]+)""", re.I)


def read_html(path: Path, options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """The one document of a page."""
    data = read_whole(path)
    if not data.strip():
        notes.skip("empty files", path)
        return
    yield Row(place=str(path), values={"text": html_text(data, options.encoding)})


def html_text(data: bytes, encoding: str = "auto") -> str:
    """The text of a page, in the encoding that it declares, else as other files are read."""
    from herd.data.text.markup import html_blocks

    declared = _CHARSET.search(data[:4096])
    found = encoding_of(data[:8192])
    if encoding != "auto":
        found = encoding
    elif found == "utf-8" and declared:
        found = declared[1].decode("ascii", "replace")
    try:
        text, _ = decode_escaped(data.decode(found, "surrogateescape" if found.startswith("utf-8") else "replace"))
    except LookupError:  # it declares an encoding that there is not
        text, _ = decode_escaped(data.decode("utf-8", "surrogateescape"))
    return "\n".join(html_blocks(text))
