"""Whole long documents in their own order: a handbook, a manual and a code tree, for mid-training.

Pages follow each other as the book's own contents name them, files of a tree by their paths. Lines that stand in a
document that is held out are left out, and pages and files with a passage of an evaluation set, so a book shows nothing
of what the model is evaluated on; the Wikipedia paragraphs of long evaluations are in no book. English and Python only;
what a page shows as screen output is dropped with its `pre`, as everywhere else.
"""

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser

from herd.data.sources.fetch import Pack
from herd.data.text.contamination import EvaluationIndex
from herd.data.text.markup import html_blocks

BOOKS = {
    "debian-handbook": "usr/share/doc/debian-handbook/html/en-US",
    "installation-guide-amd64": "usr/share/doc/installation-guide-amd64/en",
}
"""Packages with a book, and the folder of its pages."""
TREE = "reasoning-gym"
"""The package whose Python files are a document, one after the other."""


@dataclass(frozen=True, kw_only=True)
class Book:
    """One document."""

    source: str
    language: str
    """A code as of the texts, or `python`."""
    text: str
    contaminated: Counter[str] = field(default_factory=Counter)
    """Pages that were left out, by evaluation set."""


def books(packs: dict[str, Pack], held: Set[str], evaluation: EvaluationIndex) -> list[Book]:
    """The long documents that these packages have, without the lines in `held` and the pages with a passage of the
    `evaluation` sets."""
    pages = [(name, "en", _pages(packs[name], folder)) for name, folder in BOOKS.items() if name in packs]
    if TREE in packs:
        pages.append((TREE, "python", _files(packs[TREE])))
    found = [_book(name, language, of_book, held, evaluation) for name, language, of_book in pages]
    return [book for book in found if book.text]


def _book(name: str, language: str, pages: Iterator[list[str]], held: Set[str], evaluation: EvaluationIndex) -> Book:
    contaminated: Counter[str] = Counter()
    kept = []
    for blocks in pages:
        text = "\n".join(block for block in blocks if block not in held)
        if found := evaluation.find(text):
            contaminated[found[0]] += 1
        elif any(block not in held for block in blocks):
            kept.append(text)
    return Book(source=name, language=language, text="\n\n".join(kept), contaminated=contaminated)


def _pages(pack: Pack, folder: str) -> Iterator[list[str]]:
    """Blocks of the pages, in the order in which the table of contents first names them."""
    there = set(pack.names(".html"))
    if f"{folder}/index.html" not in there:
        return
    contents = LexborHTMLParser(pack.read(f"{folder}/index.html").decode(errors="replace"))
    links = [link.attributes.get("href") or "" for link in contents.css(".toc a")]
    for page in dict.fromkeys(f"{folder}/{link.split('#')[0]}" for link in links):
        if page in there:
            yield html_blocks(pack.read(page).decode(errors="replace"))


def _files(pack: Pack) -> Iterator[list[str]]:
    for name in pack.names(".py"):
        yield [f"# {name}", *pack.read(name).decode(errors="replace").splitlines()]
