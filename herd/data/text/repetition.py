"""Gopher's filters of text that repeats itself (Rae et al. 2021, table A1), with FineWeb2's shares by language.

Shares are of the characters of all words. FineWeb2 leaves out Gopher's rules of paragraphs and of the characters in
repeated lines; they are left out here too (`fineweb_duplicate_lines` asks for the latter).
"""

from collections import Counter
from collections.abc import Callable, Sequence

from herd.data.text.passage import Passage
from herd.data.text.thresholds import Thresholds


def duplicate_chars(parts: Sequence[str]) -> int:
    """Characters in those parts that are equal to an earlier one."""
    seen: set[str] = set()
    number = 0
    for part in parts:
        if part in seen:
            number += len(part)
        seen.add(part)
    return number


def gopher_duplicate_lines(passage: Passage, limits: Thresholds) -> bool:
    """More than 30 % of the lines are equal to an earlier one (Gopher); other shares by language (FineWeb2)."""
    lines = passage.lines
    return len(lines) - len(set(lines)) > limits.duplicate_lines * len(lines)


def gopher_top_ngrams(passage: Passage, limits: Thresholds) -> bool:
    """More than 20, 18, 16 % of the characters are in the most frequent n-gram of 2, 3, 4 words (Gopher)."""
    tokens, whole = passage.tokens, sum(map(len, passage.tokens))
    for words, most in enumerate(limits.top_ngrams, start=2):
        n = words * limits.tokens_per_word
        counts = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
        if not counts:
            continue
        times = max(counts.values())
        longest = max(sum(map(len, ngram)) for ngram, count in counts.items() if count == times)
        if times > 1 and times * longest > most * whole:
            return True
    return False


def gopher_duplicate_ngrams(passage: Passage, limits: Thresholds) -> bool:
    """More than 15, 14, … 10 % of the characters are in repeated n-grams of 5, 6, … 10 words (Gopher).

    Characters of n-grams that overlap are counted once.
    """
    tokens, whole = passage.tokens, sum(map(len, passage.tokens))
    for words, most in enumerate(limits.duplicate_ngrams, start=5):
        n = words * limits.tokens_per_word
        seen: set[tuple[str, ...]] = set()
        start = repeated = 0
        while start + n <= len(tokens):
            ngram = tuple(tokens[start : start + n])
            if ngram in seen:
                repeated += sum(map(len, ngram))
                start += n
            else:
                seen.add(ngram)
                start += 1
        if repeated > most * whole:
            return True
    return False


DUPLICATES: dict[str, Callable[[Passage, Thresholds], bool]] = {
    "gopher_duplicate_lines": gopher_duplicate_lines,
    "gopher_top_ngrams": gopher_top_ngrams,
    "gopher_duplicate_ngrams": gopher_duplicate_ngrams,
}
