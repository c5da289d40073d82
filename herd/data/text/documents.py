"""A document on its way through the filters, and the hash that names and orders it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

AUTO = "auto"
"""The language of a document that is to be identified."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document; the pipeline gives it back with what was removed from its text."""

    language: str
    """ISO 639-1, or `auto`."""
    source: str
    page: str
    """What it was cut from; all documents of a page fall into the same split."""
    text: str
    repeats: int = 1
    """How often it is trained on in an epoch, from the number of its duplicates."""

    @cached_property
    def id(self) -> str:
        return digest(self.text)

    @cached_property
    def num_bytes(self) -> int:
        return num_bytes(self.text)


def num_bytes(text: str) -> int:
    """Of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def digest(text: str) -> str:
    """16 hex digits of the sha256: what a text is called and ordered by."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shuffled(names: list[str]) -> list[str]:
    """In the order of their hashes: as good as random, and the same everywhere."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
