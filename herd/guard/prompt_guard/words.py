"""Text to words, words to hashed character n-grams, and the words that training has seen.

A word is a run of letters and digits, at most PIECE characters of it; a character of a script without spaces is a word
of its own, and so are signs and line breaks. A word's features are the hashes of its character n-grams, of itself and
of its form in capitals: a misspelt word shares most of its features with the right one, and there is no unknown word.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import cached_property, lru_cache

from herd.guard.prompt_guard.spelling import Speller

PIECE, GRAMS, MAX_FEATURES = 20, (2, 3, 4, 5), 40
"""Longest word, in characters; lengths of n-grams; features of a word at most."""
ENGLISH = 0.4
"""Share of the letters in known words from which a text is one that a lexicon is good for."""

_WORD = re.compile(
    r"[\u2e80-\u31ff\u3400-\u9fff\uf900-\ufaff]"  # CJK, kana: no spaces between words
    r"|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]{1,4}"  # Thai, Lao, Burmese, Khmer: likewise
    r"|(?:[^\W\u2e80-\u31ff\u3400-\u9fff\uf900-\ufaff]|[\u0300-\u036f\u0900-\u0dff]|['’](?=\w)){1,20}"  # PIECE
    r"|\n+|([^\w\s])\1{0,7}"
)


def split(text: str) -> list[str]:
    """The words of a text."""
    return [match[0] for match in _WORD.finditer(text)]


@lru_cache(maxsize=1 << 18)
def features(word: str, buckets: int) -> tuple[int, ...]:
    """The buckets of a word's features, from 1 to `buckets` - 1; bucket 0 pads."""
    low = word.lower()
    if word[0] == "\n":
        names = ["\n" * min(len(word), 3)]
    elif not (word[0].isalnum() or word[0] == "_"):
        names = [f"sign {word[0]}", f"sign {word[:4]}"]
    else:
        form = "lower" if word == low else "upper" if len(word) > 1 and word == word.upper() else "mixed"
        digits = re.sub(r"[0-9]+", "0", low)
        framed = f"<{digits}>"
        names = [f"={digits}", f"form {form}"]
        names += [
            framed[at : at + size] for size in GRAMS for at in range(len(framed) - size + 1) if size < len(framed)
        ]
    hashes = (zlib.crc32(name.encode()) % (buckets - 1) + 1 for name in names[:MAX_FEATURES])
    return tuple(hashes)


class Lexicon:
    """Words with their frequencies in the training texts: tells readable text from gibberish, and splits words that are
    written together."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts
        total = sum(counts.values()) or 1
        self._cost = {word: math.log(total / count) for word, count in counts.items()}
        self._unknown = math.log(total) + 3
        self._longest = max(map(len, counts), default=1)

    @cached_property
    def _speller(self) -> Speller:
        return Speller(self.counts)

    def corrected(self, text: str) -> str:
        """A mostly English text with its misspelt words corrected; `text` itself where there are few."""
        made = self._speller.corrected(text)
        return made if made != text and self.known(made) >= ENGLISH else text

    @classmethod
    def of(cls, texts: Iterable[str], size: int = 20_000) -> "Lexicon":
        """The most frequent lower-case words of `texts` that are at least twice there."""
        counts = Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
        kept = {
            word: count for word, count in counts.most_common(size) if count > 1 and (len(word) > 1 or word in "ai")
        }
        return cls(kept)

    def known(self, text: str) -> float:
        """The share of the letters of `text` that are in known words of three letters or more, or in known shorter ones
        beside them; 0 for a text without letters."""
        words = re.findall(r"[^\W\d_]+", text.lower())
        letters = sum(map(len, words))
        long = sum(len(word) for word in words if len(word) > 2 and word in self.counts)
        return sum(len(word) for word in words if word in self.counts) / letters if long else 0.0

    def segmented(self, run: str) -> str:
        """A run of letters as the words that it most likely is, by their frequencies (Viterbi)."""
        low = run.lower()
        if len(low) != len(run):
            run = low
        best, back = [0.0] + [math.inf] * len(low), [0] * (len(low) + 1)
        for end in range(1, len(low) + 1):
            for begin in range(max(0, end - self._longest), end):
                word = low[begin:end]
                cost = self._cost.get(word)
                cost = best[begin] + (cost if cost is not None else self._unknown * (1 + len(word)))
                if cost < best[end]:
                    best[end], back[end] = cost, begin
        words, end = [], len(low)
        while end:
            words.append(run[back[end] : end])
            end = back[end]
        return " ".join(reversed(words))
