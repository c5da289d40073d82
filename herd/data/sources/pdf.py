"""PDF, by pypdf: a file is a document, its pages joined. Pages that are pictures of text give none.

paper.pdf    →  {"text": "1 Introduction\\nThe harbour …"}
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from herd.data.sources.source import MAX_ROW_CHARS, Notes, ReadOptions, Row, Unreadable
from herd.errors import HerdError


def read_pdf(path: Path, options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """The one document of a PDF. Raises HerdError where pypdf is not installed."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise HerdError(f"{path} needs the package pypdf: pip install 'herd-lm[documents]'") from None
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # every small fault of a file would be a line
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("PDFs with a password")
        pages, size = [], 0
        for page in reader.pages:
            pages.append(page.extract_text().strip())
            size += len(pages[-1])
            if size > MAX_ROW_CHARS:
                raise Unreadable(f"documents of more than {MAX_ROW_CHARS:,} bytes in one piece")
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OSError) as error:
        raise Unreadable("damaged PDFs", type(error).__name__) from None
    text = "\n\n".join(page for page in pages if page)
    if not text:
        notes.skip("PDFs without text: their pages may be pictures", path)
        return
    yield Row(place=str(path), values={"text": text})
