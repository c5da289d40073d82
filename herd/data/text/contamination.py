"""Documents that have passages of an evaluation set, found by runs of 13 words that both have.

As for GPT-3 (Brown et al. 2020, appendix C): words in lower case without punctuation; an item of fewer than 13 words is
looked for as a whole, down to 8 words; shorter ones cannot be told from common phrases and are counted as unchecked.
A letter of a script without spaces is a word. The whole document is dropped, where GPT-3 cuts 200 characters around.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from herd.data.text.passage import MARKS, UNSPACED

MIN_NGRAM = 8
_WORD = re.compile(rf"[{UNSPACED}]|(?:[^\W_{UNSPACED}]|[{MARKS}])+")
_SHOWN_CHARS = 80


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.casefold())


class EvaluationIndex:
    """The n-grams of evaluation sets, by name."""

    def __init__(self, sets: Mapping[str, Iterable[str]], ngram: int) -> None:
        self.unchecked: Counter[str] = Counter()
        """Items of fewer than 8 words, by set."""
        self._places: dict[int, dict[str, tuple[str, str]]] = {}
        for name in sorted(sets):
            for item in sets[name]:
                words = words_of(item)
                n = min(ngram, len(words))
                if n < min(MIN_NGRAM, ngram):
                    self.unchecked[name] += 1
                    continue
                shown = " ".join(item.split())[:_SHOWN_CHARS]
                for gram in _ngrams(words, n):
                    self._places.setdefault(n, {}).setdefault(gram, (name, shown))

    def find(self, text: str) -> tuple[str, str] | None:
        """The name of a set, and the beginning of its item, that has a passage of `text`; None where none has."""
        if not self._places:
            return None
        words = words_of(text)
        for n, places in sorted(self._places.items(), reverse=True):
            for gram in _ngrams(words, n):
                if gram in places:
                    return places[gram]
        return None


def _ngrams(words: list[str], n: int) -> Iterator[str]:
    return (" ".join(words[start : start + n]) for start in range(len(words) - n + 1))
