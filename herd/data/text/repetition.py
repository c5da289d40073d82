"""Gopher's filters of text that repeats itself (Rae et al. 2021, table A1), with FineWeb2's shares by language.

Shares are of the characters of the text, as in datatrove, which FineWeb2's shares were found with. FineWeb2 leaves out
Gopher's rules of paragraphs and of the characters in repeated lines; they are left out here too
(`fineweb_duplicate_lines` asks for the latter).
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

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
    """More than 20, 18, 16 % of the characters are in the most frequent n-gram of 2, 3, 4 words (Gopher).

    Of several that are the most frequent, the first one. The spaces between its words count.
    """
    spaced = limits.tokens_per_word == 1
    times = passage.num_tokens
    for words, most in enumerate(limits.top_ngrams, start=2):
        n = words * limits.tokens_per_word
        if passage.num_tokens < n:
            break
        lengths = passage.ends[n:] - passage.ends[:-n] + (n - 1) * spaced
        if times * lengths.max() <= most * len(passage.text):
            continue  # no n-gram is more frequent than a shorter one that it begins with
        ngrams = passage.ngrams(n)
        times = _count_top(ngrams)
        if times * lengths.max() <= most * len(passage.text):
            continue
        order, is_repeated = _group(ngrams)
        bounds = np.concatenate((np.flatnonzero(~is_repeated), [len(ngrams)]))
        first = order[bounds[:-1][bounds[1:] - bounds[:-1] == times]].min()
        if times * lengths[first] / len(passage.text) > most:
            return True
    return False


def gopher_duplicate_ngrams(passage: Passage, limits: Thresholds) -> bool:
    """More than 15, 14, … 10 % of the characters are in repeated n-grams of 5, 6, … 10 words (Gopher).

    Characters of n-grams that overlap are counted once.
    """
    least = min(limits.duplicate_ngrams)
    for words, most in enumerate(limits.duplicate_ngrams, start=5):
        n = words * limits.tokens_per_word
        ngrams = passage.ngrams(n)
        order, is_repeated = _group(ngrams)
        repeated = order[is_repeated]
        # A longer n-gram that is repeated is made of repeated ones of this length.
        if _chars_within(repeated, passage.ends, n) <= least * len(passage.text):
            return False
        lengths = passage.ends[n:] - passage.ends[:-n]
        if _chars_in_repeated(ngrams.tolist(), lengths, n) / len(passage.text) > most:
            return True
    return False


def _count_top(ngrams: npt.NDArray[np.uint64]) -> int:
    """How often the most frequent n-gram is there."""
    ordered = np.sort(ngrams)
    ends = np.flatnonzero(ordered[1:] != ordered[:-1])
    if not len(ends):
        return len(ngrams)
    return int(max(ends[0] + 1, len(ngrams) - 1 - ends[-1], (ends[1:] - ends[:-1]).max(initial=1)))


def _group(ngrams: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The places of the n-grams with equal ones beside each other, and whether each is equal to the one before it."""
    order = np.argsort(ngrams, kind="stable")
    ordered = ngrams[order]
    is_repeated = np.zeros(len(order), np.bool_)
    np.equal(ordered[1:], ordered[:-1], out=is_repeated[1:])
    return order, is_repeated


def _chars_within(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], n: int) -> int:
    """Characters of the tokens that are within at least one of the n-grams at `starts`."""
    is_start = np.zeros(len(ends) - 1, np.bool_)
    is_start[starts] = True
    open_: npt.NDArray[np.int64] = np.cumsum(is_start, dtype=np.int64)
    open_[n:] -= open_[:-n].copy()
    return int(np.diff(ends)[open_ > 0].sum())


def _chars_in_repeated(ngrams: list[int], lengths: npt.NDArray[np.int64], n: int) -> int:
    """Characters of the n-grams that are equal to an earlier one, each beginning behind the last that was counted."""
    seen: set[int] = set()
    start = number = 0
    while start < len(ngrams):
        if ngrams[start] in seen:
            number += int(lengths[start])
            start += n
        else:
            seen.add(ngrams[start])
            start += 1
    return number


DUPLICATES: dict[str, Callable[[Passage, Thresholds], bool]] = {
    "gopher_duplicate_lines": gopher_duplicate_lines,
    "gopher_top_ngrams": gopher_top_ngrams,
    "gopher_duplicate_ngrams": gopher_duplicate_ngrams,
}
