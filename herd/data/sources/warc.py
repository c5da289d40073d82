"""WARC, the format of web crawls, by warcio: pages as HTML (`response`) or as text that was extracted (`conversion`).

crawl.warc.gz: WARC-Target-URI: http://example.org/tea, an HTML page    →  {"text": "Tea\\n…", "url": "http://…"}
"""

from collections.abc import Iterator
from pathlib import Path

from herd.data.sources.html import html_text
from herd.data.sources.source import Notes, ReadOptions, Row, Unreadable
from herd.data.sources.stream import bounded_bytes, decode_escaped
from herd.errors import HerdError

_PAGES = ("text/html", "application/xhtml+xml")


def read_warc(path: Path, options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """A row for each page with status 200. Raises HerdError where warcio is not installed."""
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError:
        raise HerdError(f"{path} needs the package warcio: pip install 'herd-lm[documents]'") from None
    number = 0
    try:
        with path.open("rb") as file:
            for number, record in enumerate(ArchiveIterator(file), 1):
                kind, url = record.rec_type, record.rec_headers.get_header("WARC-Target-URI") or ""
                place = f"{path} record {number}"
                try:
                    if kind == "conversion":
                        text, _ = decode_escaped(
                            bounded_bytes(record.content_stream()).decode("utf-8", "surrogateescape")
                        )
                    elif kind == "response" and _is_page(record):
                        text = html_text(bounded_bytes(record.content_stream()))
                    else:
                        continue
                except Unreadable as error:
                    notes.skip(str(error), place, error.detail)
                    continue
                yield Row(place=place, values={"text": text, "url": url})
    except ArchiveLoadFailed as error:
        raise Unreadable("files that are not WARC", str(error)[:80]) from None
    if not number:
        notes.skip("empty files", path)


def _is_page(record: "object") -> bool:
    headers = record.http_headers  # type: ignore[attr-defined]
    if headers is None or not headers.statusline.startswith("200"):
        return False
    kind = headers.get_header("Content-Type") or ""
    return kind.partition(";")[0].strip().lower() in _PAGES
