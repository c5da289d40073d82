"""How much of a text occurs in other texts, as its share of word 8-grams: keeps test items out of training, and removes
near-duplicates of a set."""

import re
import zlib
from collections.abc import Iterable, Sequence

SIZE = 8
"""Words of a gram; a shorter text is one gram as a whole."""
CONTAMINATED, DUPLICATE = 0.1, 0.5
"""Shares of 8-grams from which a training item is dropped, and an item counts as a copy of one of its own set."""


def grams(text: str) -> frozenset[int]:
    """Hashes of the 8-grams of lower-case words."""
    words = re.findall(r"\w+", text.lower())
    runs = (words[at : at + SIZE] for at in range(max(1, len(words) - SIZE + 1)))
    return frozenset(zlib.crc32(" ".join(run).encode()) for run in runs) if words else frozenset()


def share_in(text: str, others: Iterable[int] | frozenset[int]) -> float:
    """The share of the grams of `text` that are among `others`."""
    own = grams(text)
    return len(own & frozenset(others)) / len(own) if own else 0.0


def grams_of(texts: Iterable[str]) -> frozenset[int]:
    """The grams of all of them."""
    return frozenset(gram for text in texts for gram in grams(text))


def without_copies(texts: Sequence[str], limit: float = DUPLICATE) -> list[str]:
    """The texts, in order, that do not share more than `limit` of their grams with one that is kept before them."""
    kept: list[str] = []
    holders: dict[int, list[int]] = {}
    for text in texts:
        own = grams(text)
        counts: dict[int, int] = {}
        for gram in own:
            for holder in holders.get(gram, ()):
                counts[holder] = counts.get(holder, 0) + 1
        if own and max(counts.values(), default=0) <= limit * len(own):
            for gram in own:
                holders.setdefault(gram, []).append(len(kept))
            kept.append(text)
    return kept


def overlap(first: Sequence[str], second: Sequence[str], limit: float = 0.2) -> float:
    """The share of `first` of which more than `limit` of the grams occur somewhere in `second`."""
    others = grams_of(second)
    return sum(share_in(text, others) > limit for text in first) / len(first) if first else 0.0
