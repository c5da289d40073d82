"""From markup to plain paragraphs, and the filters that a document passes on its way.

A page is a list of blocks (paragraphs, headings, cells). Blocks in another language than the page's, blocks that many
pages of one source share (menus, notices), and blocks that are mostly symbols are dropped; what is left has to be long
enough and in the right language. HTML is parsed by selectolax (Lexbor); nothing here matches tags by regex.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

from selectolax.lexbor import LexborHTMLParser, LexborNode

from herd.data.languages import is_language, may_be_language

DROPPED = (
    "script, style, header, footer, nav, aside, pre, .navheader, .navfooter, .docnav, .toc, .index, "
    "#switch, .switchinline .MAC, .legalnotice"
)
INLINE = frozenset(
    ("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "br", "cite", "code", "em", "font", "i", "img", "kbd", "mark")
    + ("q", "s", "samp", "small", "span", "strong", "sub", "sup", "tt", "u", "var")
)

MIN_DOCUMENT_BYTES = 200
MAX_DOCUMENT_BYTES = 8_000
"""Longer pages are cut at a block's end into several documents, so that one page does not outweigh a language."""
SHARED_BY = 4
"""A block that stands in so many documents of one source and language is boilerplate."""
MAX_SYMBOL_SHARE = 0.35

# Combining marks (Latin, Devanagari, Arabic) are no letters to `re`, but they are to readers.
_SYMBOLS = re.compile(
    r"[^\w\s\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963"
    r".,;:!?'\"’“”«»()。、，！？：；「」『』（）।؟،-]|[\d_]"
)
_SPACE = re.compile(r"\s+")
# The two joiners stay: Hindi and Arabic spell with them.
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufffd\ue000-\uf8ff]"
)


def html_blocks(html: str, root: str = "body") -> list[str]:
    """The text under the CSS selector `root`, cut wherever an element that is not inline begins or ends."""
    tree = LexborHTMLParser(html)
    top = tree.css_first(root)
    if top is None:
        return []
    for node in top.css(DROPPED):
        node.decompose()
    blocks: list[str] = []
    pieces: list[str] = []

    def flush() -> None:
        text = normalise("".join(pieces))
        pieces.clear()
        if text:
            blocks.append(text)

    def walk(node: LexborNode) -> None:
        for child in node.iter(include_text=True):
            if child.tag == "-text":
                pieces.append(child.text_content or "")
            elif child.tag in INLINE:
                walk(child)
                if child.tag == "br":
                    pieces.append(" ")
            else:
                flush()
                walk(child)
                flush()

    walk(top)
    flush()
    return blocks


def normalise(text: str) -> str:
    """NFC, one space for any run of white space, no control characters."""
    text = unicodedata.normalize("NFC", text)
    return _SPACE.sub(" ", _CONTROLS.sub("", text)).strip()


def symbol_share(text: str) -> float:
    """The share of digits and symbols among all characters but spaces."""
    dense = _SPACE.sub("", text)
    return len(_SYMBOLS.findall(dense)) / max(len(dense), 1)


def clean_pages(
    pages: Sequence[list[str]], language: str, dropped: Counter[str], *, boilerplate: bool = True
) -> list[list[str]]:
    """Filter the blocks of one source's pages in one language. Returns the documents that each page comes to, if any.

    `dropped` counts what each filter took: blocks by `block: …`, documents by `document: …`.
    """
    seen_in = Counter(block for blocks in pages for block in set(blocks))
    cleaned = []
    for blocks in pages:
        kept = []
        for block in blocks:
            reason = _block_fault(block, language)
            if not reason and boilerplate and seen_in[block] >= SHARED_BY:
                reason = "boilerplate"
            if reason:
                dropped[f"block: {reason}"] += 1
            else:
                kept.append(block)
        documents = []
        for text in _parts(kept):
            reason = document_fault(text, language)
            if reason:
                dropped[f"document: {reason}"] += 1
            else:
                documents.append(text)
        if documents:
            cleaned.append(documents)
    return cleaned


@lru_cache(maxsize=100_000)
def _block_fault(block: str, language: str) -> str:
    if symbol_share(block) > MAX_SYMBOL_SHARE:
        return "symbols"
    if not may_be_language(block, language):
        return "other language"
    return ""


def document_fault(text: str, language: str) -> str:
    """Why a document is not used; empty where it is."""
    if len(text.encode()) < MIN_DOCUMENT_BYTES:
        return "short"
    if symbol_share(text) > MAX_SYMBOL_SHARE:
        return "symbols"
    if not is_language(text, language):
        return "other language"
    return ""


def _parts(blocks: list[str]) -> Iterator[str]:
    """The blocks as lines, in parts of at most MAX_DOCUMENT_BYTES (a single longer block stays whole)."""
    part: list[str] = []
    size = 0
    for block in blocks:
        length = len(block.encode()) + 1
        if part and size + length > MAX_DOCUMENT_BYTES:
            yield "\n".join(part)
            part, size = [], 0
        part.append(block)
        size += length
    if part:
        yield "\n".join(part)
