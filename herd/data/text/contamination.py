"""Documents that have passages of an evaluation set, found by runs of 13 words that both have.

As for GPT-3 (Brown et al. 2020, appendix C): words in lower case without punctuation; an item of fewer than 13 words is
looked for as a whole, down to 8 words; shorter ones cannot be told from common phrases and are counted as unchecked.
A letter of a script without spaces is a word. The whole document is dropped, where GPT-3 cuts 200 characters around.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from herd.data.text.passage import MARKS, UNSPACED, hash_runs

Hashes = npt.NDArray[np.uint64]

MIN_NGRAM = 8
_WORD = re.compile(rf"(?:[^\W_{UNSPACED}]+|[{MARKS}]+)+|[{UNSPACED}]")
_SHOWN_CHARS = 80


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.casefold())


class EvaluationIndex:
    """The n-grams of evaluation sets, by name: their hashes, found by a bitmap and confirmed by a table."""

    def __init__(self, sets: Mapping[str, Iterable[str]], ngram: int) -> None:
        self.unchecked: Counter[str] = Counter()
        """Items of fewer than 8 words, by set."""
        self._places: dict[int, dict[int, tuple[str, str]]] = {}
        for name in sorted(sets):
            for item in sets[name]:
                words = words_of(item)
                n = min(ngram, len(words))
                if n < min(MIN_NGRAM, ngram):
                    self.unchecked[name] += 1
                    continue
                place = (name, " ".join(item.split())[:_SHOWN_CHARS])
                places = self._places.setdefault(n, {})
                for gram in _hash_ngrams(words, n).tolist():
                    places.setdefault(gram, place)
        self._bitmaps = {n: _bitmap(np.fromiter(places, np.uint64)) for n, places in self._places.items()}

    def find(self, text: str) -> tuple[str, str] | None:
        """The name of a set, and the beginning of its item, that has a passage of `text`; None where none has."""
        if not self._places:
            return None
        words = words_of(text)
        for n in sorted(self._places, reverse=True):
            grams, places, bitmap = _hash_ngrams(words, n), self._places[n], self._bitmaps[n]
            for gram in grams[bitmap[_slots(grams, bitmap)]].tolist():
                if gram in places:
                    return places[gram]
        return None


def _hash_ngrams(words: list[str], n: int) -> Hashes:
    # Not `hash`, which differs between processes.
    hashes = np.fromiter(map(zlib.crc32, map(str.encode, words)), np.uint64, len(words))
    return hash_runs(hashes, n)


def _bitmap(hashes: Hashes) -> npt.NDArray[np.bool_]:
    """Whether a hash with these first bits is there; at least eight slots for each."""
    bitmap = np.zeros(1 << (8 * len(hashes)).bit_length(), np.bool_)
    bitmap[_slots(hashes, bitmap)] = True
    return bitmap


def _slots(hashes: Hashes, bitmap: npt.NDArray[np.bool_]) -> Hashes:
    return hashes >> np.uint64(65 - len(bitmap).bit_length())
