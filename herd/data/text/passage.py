"""A text as its lines and words, each computed once for all filters that ask for them."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from herd.data.text.words import MARKS, Vocabulary, vocabulary

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
    def _vocabulary(self) -> Vocabulary:
        return vocabulary(self.language)

    @cached_property
    def _numbers(self) -> npt.NDArray[np.int64]:
        return self._vocabulary.read(self.text)

    @property
    def num_tokens(self) -> int:
        """Words and, each alone, punctuation marks and symbols, as the thresholds count them."""
        return len(self._numbers)

    @property
    def tokens(self) -> list[str]:
        """These words and marks."""
        return [self._vocabulary.words[number] for number in self._numbers]

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """Characters in the first 0, 1, 2, … tokens."""
        ends = np.zeros(len(self._numbers) + 1, np.int64)
        np.cumsum(self._vocabulary.lengths[self._numbers], out=ends[1:])
        return ends

    def ngrams(self, n: int) -> npt.NDArray[np.uint64]:
        """A hash of each run of `n` tokens; the same only in this process."""
        return hash_runs(self._numbers.view(np.uint64), n)

    @cached_property
    def words(self) -> tuple[int, int]:
        """How many tokens are more than punctuation, and their characters."""
        words = self._numbers[self._vocabulary.is_word[self._numbers]]
        return len(words), int(self._vocabulary.lengths[words].sum())

    @property
    def alphabetic(self) -> tuple[int, int]:
        """How many tokens have a letter, and how many a letter or digit."""
        of = self._vocabulary
        with_letter, words = (np.count_nonzero(has[self._numbers]) for has in (of.has_letter, of.has_alphanumeric))
        return int(with_letter), int(words)

    def count(self, words: Collection[str]) -> int:
        """How many of `words` are among the tokens."""
        read = set(self._numbers.tolist())
        return len(read & self._vocabulary.find(words))


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
