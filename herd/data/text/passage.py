"""A text as its lines and words, each computed once for all filters that ask for them."""

import re
from dataclasses import dataclass
from functools import cached_property

MARKS = r"\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963"
"""Combining marks (Latin, Arabic, Devanagari): no letters to `re`, but parts of words."""
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Letters of scripts without spaces between words (Thai, kana, Han): each counts as a word of its own."""

_TOKEN = re.compile(
    rf"[{UNSPACED}]|[^\W_{UNSPACED}][^\W{UNSPACED}]*(?:[{MARKS}\u200c\u200d]+[^\W{UNSPACED}]*)*|[^\w\s]|_"
)
_SYMBOLS = re.compile(
    rf"[^\w\s{MARKS}"
    r".,;:!?'\"’“”«»()。、，！？：；「」『』（）।؟،-]|[\d_]"
)
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Passage:
    """A text and its language, as the filters see it."""

    text: str
    language: str

    @cached_property
    def lines(self) -> list[str]:
        """Those that are not blank, without the space around them."""
        return [line for raw in self.text.split("\n") if (line := raw.strip())]

    @cached_property
    def tokens(self) -> list[str]:
        """Words and, each alone, punctuation marks and symbols, as FineWeb2's thresholds count them."""
        return _TOKEN.findall(self.text)

    @cached_property
    def words(self) -> list[str]:
        """The tokens with a letter or digit."""
        return [token for token in self.tokens if token[0].isalnum()]


def symbol_share(text: str) -> float:
    """The share of digits and symbols among all characters but spaces."""
    dense = _SPACE.sub("", text)
    return len(_SYMBOLS.findall(dense)) / max(len(dense), 1)
