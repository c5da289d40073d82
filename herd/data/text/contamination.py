"""Documents that have passages of an evaluation set, found by runs of 13 words that both have.

As for GPT-3 (Brown et al. 2020, appendix C): words in lower case without punctuation; an item of fewer than 13 words is
looked for as a whole, down to 8 words; shorter ones are common phrases too often, and are counted as unchecked. Two
letters of a script without spaces count as a word. The whole document is dropped, where GPT-3 cuts 200 characters
around.

Items that are made when they are asked (a fact about a key that is drawn) are `Pattern`s: words with gaps for any word
or any number. A pattern is looked for as a whole, if it has 8 words of which 5 are no gaps for any word.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from herd.data.text.passage import hash_runs
from herd.data.text.words import MARKS, UNSPACED

Hashes = npt.NDArray[np.uint64]
Place = tuple[str, str]
"""The name of a set, and the beginning of its item."""

MIN_NGRAM = 8
MIN_GIVEN = 5
"""Least words of a pattern that are no gaps for any word."""
ANY, NUMBER = "*", "#"
"""Gaps of a pattern: neither is a word of any text."""
_WORD = re.compile(rf"(?:[^\W_{UNSPACED}]+|[{MARKS}]+)+|[{UNSPACED}]")
_LETTER = re.compile(rf"[{UNSPACED}]")
LETTERS_PER_WORD = 2
"""Of a script without spaces."""
_FIELD = re.compile(r"\{(\w+)\}")
_SHOWN_CHARS = 80


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; of scripts without spaces the letters."""
    return _WORD.findall(text.casefold())


@dataclass(frozen=True)
class Pattern:
    """An item with gaps."""

    words: tuple[str, ...]
    """Neither the first nor the last is ANY."""
    shown: str

    @staticmethod
    def of(template: str, **gaps: str) -> "Pattern":
        """A template with fields such as `{key}`, each with its gaps: `**` for any two words."""
        words: list[str] = []
        for place, part in enumerate(_FIELD.split(template)):
            words += gaps[part] if place % 2 else words_of(part)
        while words and words[-1] == ANY:
            words.pop()
        begin = next((place for place, word in enumerate(words) if word != ANY), 0)
        return Pattern(tuple(words[begin:]), template)

    @property
    def is_checked(self) -> bool:
        """Whether it is long enough to be looked for."""
        given = [word for word in self.words if word != ANY]
        return len(self.words) >= MIN_NGRAM * self.scale and len(given) >= MIN_GIVEN * self.scale

    @property
    def scale(self) -> int:
        """How many of `words` count as one: 2 where most are letters of a script without spaces."""
        letters = sum(_LETTER.match(word) is not None for word in self.words)
        return LETTERS_PER_WORD if 2 * letters > len(self.words) else 1

    def anchor(self) -> tuple[int, list[str]]:
        """The first 8, else 4, words of the longest run of given ones: where it begins, and the words."""
        runs: list[tuple[int, list[str]]] = []
        for place, word in enumerate(self.words):
            if word in (ANY, NUMBER):
                continue
            if not runs or place != runs[-1][0] + len(runs[-1][1]):
                runs.append((place, []))
            runs[-1][1].append(word)
        begin, run = max(runs, key=lambda run: len(run[1]))
        return begin, run[: 8 if len(run) >= 8 else 4]

    def is_at(self, words: list[str], begin: int) -> bool:
        """Whether `words` have it from `begin` on."""
        if begin < 0 or begin + len(self.words) > len(words):
            return False
        passage = words[begin : begin + len(self.words)]
        return all(
            given in (ANY, word) or (given == NUMBER and word.isdecimal())
            for given, word in zip(self.words, passage, strict=True)
        )


Item = str | Pattern
EvaluationSets = Mapping[str, Iterable[Item]]
"""Names of evaluation sets and their items."""


class EvaluationIndex:
    """The items of evaluation sets: hashes of their n-grams, found by a bitmap and confirmed by a table."""

    def __init__(self, sets: EvaluationSets, ngram: int) -> None:
        """With `ngram` 0 nothing is looked for."""
        self.checked: Counter[str] = Counter()
        """Items that are looked for, by set."""
        self.unchecked: Counter[str] = Counter()
        """Items that are too short, by set."""
        self._places: list[Place] = []
        """Of the items that have n-grams."""
        self._patterns: dict[int, dict[int, list[tuple[int, Pattern, Place]]]] = {}
        """Of the others by the length and the hash of their anchor: where it begins, the pattern and its place."""
        grams: dict[int, list[tuple[Hashes, int]]] = {}
        """By n: the n-grams of an item, and the number of its place."""
        for name in sorted(sets) if ngram else ():
            for item in sets[name]:
                pattern = item if isinstance(item, Pattern) else Pattern(tuple(words_of(item)), " ".join(item.split()))
                place = (name, pattern.shown[:_SHOWN_CHARS])
                n = ngram * pattern.scale
                if isinstance(item, str) and len(pattern.words) >= n:
                    grams.setdefault(n, []).append((hash_runs(_hash_words(pattern.words), n), len(self._places)))
                    self._places.append(place)
                elif pattern.is_checked:
                    self._add_pattern(pattern, place)
                else:
                    self.unchecked[name] += 1
                    continue
                self.checked[name] += 1
        self._grams = {n: _first_places(of_n) for n, of_n in grams.items()}
        """By n: the n-grams in order, and the place of each."""
        self._bitmaps = {n: _bitmap(known) for n, (known, _) in self._grams.items()}
        self._anchors = {n: _bitmap(np.fromiter(found, np.uint64)) for n, found in self._patterns.items()}

    def _add_pattern(self, pattern: Pattern, place: Place) -> None:
        begin, words = pattern.anchor()
        [gram] = hash_runs(_hash_words(words), len(words)).tolist()
        self._patterns.setdefault(len(words), {}).setdefault(gram, []).append((begin, pattern, place))

    def find(self, text: str) -> Place | None:
        """The name of a set, and the beginning of its item, that has a passage of `text`; None where none has."""
        if not self.checked:
            return None
        words = words_of(text)
        hashes = _hash_words(words)
        for n, (known, places) in self._grams.items():
            grams, bitmap = hash_runs(hashes, n), self._bitmaps[n]
            grams = grams[bitmap[_slots(grams, bitmap)]]
            at = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            if len(found := at[known[at] == grams]):
                return self._places[int(places[found[0]])]
        for n, patterns in sorted(self._patterns.items(), reverse=True):
            grams, bitmap = hash_runs(hashes, n), self._anchors[n]
            for here in np.flatnonzero(bitmap[_slots(grams, bitmap)]).tolist():
                for begin, pattern, place in patterns.get(int(grams[here]), ()):
                    if pattern.is_at(words, here - begin):
                        return place
        return None


def _hash_words(words: Sequence[str]) -> Hashes:
    # Not `hash`, which differs between processes.
    return np.fromiter(map(zlib.crc32, map(str.encode, words)), np.uint64, len(words))


def _first_places(found: Sequence[tuple[Hashes, int]]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """The distinct n-grams of all items, in order, and the place of the first item that has each."""
    places = np.repeat([place for _, place in found], [len(grams) for grams, _ in found])
    known, first = np.unique(np.concatenate([grams for grams, _ in found]), return_index=True)
    return known, places[first]


def _bitmap(hashes: Hashes) -> npt.NDArray[np.bool_]:
    """Whether a hash with these first bits is there; at least eight slots for each."""
    bitmap = np.zeros(1 << (8 * len(hashes)).bit_length(), np.bool_)
    bitmap[_slots(hashes, bitmap)] = True
    return bitmap


def _slots(hashes: Hashes, bitmap: npt.NDArray[np.bool_]) -> Hashes:
    return hashes >> np.uint64(65 - len(bitmap).bit_length())
