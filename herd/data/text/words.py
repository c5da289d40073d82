"""The words of a text as datatrove counts them, which the thresholds of the filters were found with.

datatrove uses spaCy's tokenizers, whose rules herd/data/text/word_rules.py follows. What is between white space, a
chunk, is split once and remembered; most of a text is looked up.

Hindi is split at punctuation, as by datatrove's indic-nlp-library. Where datatrove needs a dictionary or a model (jieba
for Chinese, SudachiPy for Japanese, pyvi for Vietnamese, pythainlp for Thai), each letter of a script without spaces is
a word, and each syllable of Vietnamese. Any other language has spaCy's rules for languages without rules of their own.
"""

import math
import re
import string
from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from herd.data.text.thresholds import thresholds
from herd.data.text.word_rules import OTHERS, SpacyRules, Words, rules

MARKS = r"\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963"
"""Combining marks (Latin, Arabic, Devanagari): no letters to `re`, but parts of words."""
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Letters of scripts without spaces between words (Thai, kana, Han)."""
MAX_REMEMBERED = 200_000
"""Chunks that are remembered, the first ones, as frequent ones come early; of words twice as many, then a vocabulary
starts anew. Some 60 MB a language."""

_LETTERS = re.compile(
    rf"(?:[^\W\d_{UNSPACED}]\.)+"  # initials and abbreviations: U.S.
    r"|\d+(?:[.,:/–-]\d+)+"  # numbers and dates
    rf"|[^\W_{UNSPACED}][^\W{UNSPACED}]*(?:[{MARKS}\u200c\u200d]+[^\W{UNSPACED}]*)*"
    rf"|[{UNSPACED}]|\.\.\.+|[^\w\s]|_"
)
_INDIC_MARK = re.compile(f"([{re.escape(string.punctuation.replace(chr(92), ''))}।॥])")  # no backslash
_INDIC_NUMBER = re.compile(r"(?:[0-9]+ [,.:/] )+[0-9]+")

Value = TypeVar("Value")


class Splitter(Protocol):
    """Splits a text into chunks, and a chunk, whatever is around it, into words."""

    def chunks(self, text: str) -> Sequence[str]: ...

    def split(self, chunk: str) -> Words: ...


class IndicMarks:
    """Hindi at its punctuation marks (indic-nlp-library, trivial_tokenize); numbers and dates stay together."""

    def chunks(self, text: str) -> Sequence[str]:
        text = re.sub(" +", " ", _INDIC_MARK.sub(r" \1 ", text.replace("\t", " ")))
        text = _INDIC_NUMBER.sub(lambda match: match.group().replace(" ", ""), text)
        return [word for one in text.split(" ") if (word := one.strip())]

    def split(self, chunk: str) -> Words:
        return (chunk,)


class Letters:
    """Each letter of a script without spaces, words of others, and marks."""

    def chunks(self, text: str) -> Sequence[str]:
        return _LETTERS.findall(text)

    def split(self, chunk: str) -> Words:
        return (chunk,)


@cache
def splitter(language: str) -> Splitter:
    """That of a language, ISO 639-1."""
    if thresholds(language).tokens_per_word > 1:
        return Letters()
    if language == "hi":
        return IndicMarks()
    return SpacyRules(language) if language in rules()["languages"] or language == OTHERS else splitter(OTHERS)


class Vocabulary:
    """The words of a language by number, what the filters ask of them, and the numbers of the words of each chunk."""

    def __init__(self, splitter: Splitter) -> None:
        self._splitter = splitter
        self._punctuation = frozenset(rules()["punctuation"])
        self._numbers = _Remembered(self._add, math.inf)
        self._chunks = _Remembered(self._split, MAX_REMEMBERED)
        self.words: list[str] = []
        self.lengths = np.zeros(0, np.int64)
        """Characters of each word; the arrays are longer than `words`."""
        self.is_word = np.zeros(0, np.bool_)
        """Whether it is more than punctuation."""
        self.has_letter = np.zeros(0, np.bool_)
        self.has_alphanumeric = np.zeros(0, np.bool_)

    @property
    def is_full(self) -> bool:
        """Whether a new one should take its place."""
        return len(self.words) >= 2 * MAX_REMEMBERED

    def read(self, text: str) -> npt.NDArray[np.int64]:
        """The numbers of the words of a text."""
        chunks = self._splitter.chunks(text)
        return np.fromiter(chain.from_iterable(map(self._chunks.__getitem__, chunks)), np.int64)

    def find(self, words: Collection[str]) -> set[int]:
        """The numbers of those of `words` that have been read."""
        return {self._numbers[word] for word in words if word in self._numbers}

    def _split(self, chunk: str) -> tuple[int, ...]:
        return tuple(map(self._numbers.__getitem__, self._splitter.split(chunk)))

    def _add(self, word: str) -> int:
        number = len(self.words)
        if number == len(self.lengths):
            for name in ("lengths", "is_word", "has_letter", "has_alphanumeric"):
                setattr(self, name, np.resize(getattr(self, name), max(1024, 2 * number)))
        is_alphabetic = word.isalpha()
        self.lengths[number] = len(word)
        self.is_word[number] = is_alphabetic or not self._punctuation.issuperset(word)
        self.has_letter[number] = is_alphabetic or any(map(str.isalpha, word))
        self.has_alphanumeric[number] = is_alphabetic or any(map(str.isalnum, word))
        self.words.append(word)
        return number


class _Remembered(dict[str, Value]):
    """What a function of a string returns, computed once for each of the first strings."""

    def __init__(self, compute: Callable[[str], Value], most: float) -> None:
        super().__init__()
        self._compute, self._most = compute, most

    def __missing__(self, key: str) -> Value:
        value = self._compute(key)
        if len(self) < self._most:
            self[key] = value
        return value


_VOCABULARIES: dict[Splitter, Vocabulary] = {}


def vocabulary(language: str) -> Vocabulary:
    """That of a language, which remembers what was read before."""
    own = splitter(language)
    found = _VOCABULARIES.get(own)
    if found is None or found.is_full:
        found = _VOCABULARIES[own] = Vocabulary(own)
    return found


def forget_words() -> None:
    """Start all vocabularies anew."""
    _VOCABULARIES.clear()
