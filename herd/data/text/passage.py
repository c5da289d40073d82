"""A text as its lines and words, each computed once for all filters that ask for them."""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import filterfalse

import numpy as np
import numpy.typing as npt

MARKS = r"\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963"
"""Combining marks (Latin, Arabic, Devanagari): no letters to `re`, but parts of words."""
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Letters of scripts without spaces between words (Thai, kana, Han): each counts as a word of its own."""

_TOKEN = re.compile(
    rf"(?:[^\W\d_{UNSPACED}]\.)+"  # initials and abbreviations: U.S.
    r"|\d+(?:[.,:/–-]\d+)+"  # numbers and dates
    rf"|[^\W_{UNSPACED}][^\W{UNSPACED}]*(?:[{MARKS}\u200c\u200d]+[^\W{UNSPACED}]*)*"
    rf"|[{UNSPACED}]"
    r"|['’](?:s|t|d|m|ll|re|ve)\b"  # the second part of an English contraction
    r"|\.\.\.+|[^\w\s]|_"
)
_FACTOR = 0x9E3779B97F4A7C15
_SYMBOLS = re.compile(
    rf"[^\w\s{MARKS}"
    r".,;:!?'\"’“”«»()。、，！？：；「」『』（）।؟،-]|[\d_]"
)
_ASCII_SYMBOLS = bytes(code for code in range(128) if _SYMBOLS.match(chr(code)))


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
        """Words and, each alone, punctuation marks and symbols, as FineWeb2's thresholds count them.

        In English nearly spaCy's tokens, which those filters were published with.
        """
        return _TOKEN.findall(self.text)

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """Characters in the first 0, 1, 2, … tokens."""
        ends = np.zeros(len(self.tokens) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, self.tokens), np.int64, len(self.tokens)), out=ends[1:])
        return ends

    def ngrams(self, n: int) -> npt.NDArray[np.uint64]:
        """A hash of each run of `n` tokens; the same only in this process."""
        return hash_runs(self._hashes, n)

    @cached_property
    def _hashes(self) -> npt.NDArray[np.uint64]:
        return np.fromiter(map(hash, self.tokens), np.int64, len(self.tokens)).view(np.uint64)

    @cached_property
    def words(self) -> tuple[int, int]:
        """How many tokens have a letter or digit, and their characters."""
        others = [token for token in filterfalse(str.isalnum, self.tokens) if not _is_word(token)]
        return len(self.tokens) - len(others), int(self.ends[-1]) - sum(map(len, others))


def _is_word(token: str) -> bool:
    return token[0].isalnum() or token[-1].isalnum()


def hash_runs(hashes: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """A hash of each run of `n` hashes, none if there are fewer; by doubling, in about log n passes."""
    length, power, runs = 1, _FACTOR, hashes
    for bit in f"{n:b}"[1:]:
        # A run of 2 L is one of L, times the factor to the power of L, and the one behind it.
        runs = runs[:-length] * np.uint64(power) + runs[length:]
        power, length = power * power % 2**64, 2 * length
        if bit == "1":
            runs = runs[:-1] * np.uint64(_FACTOR) + hashes[length:]
            power, length = power * _FACTOR % 2**64, length + 1
    return runs


def symbol_share(text: str) -> float:
    """The share of digits and symbols among all characters but spaces."""
    dense = "".join(text.split())
    if dense.isascii():
        return (len(dense) - len(dense.encode().translate(None, _ASCII_SYMBOLS))) / max(len(dense), 1)
    return len(_SYMBOLS.findall(dense)) / max(len(dense), 1)
