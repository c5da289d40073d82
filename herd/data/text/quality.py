"""Filters of whole documents: pure functions of a passage and its language's thresholds, True where it is dropped.

Gopher is Rae et al. 2021, appendix A1; FineWeb is Penedo et al. 2024, section 3.6; C4 is Raffel et al. 2020, section
2.2, with the numbers of the published code where they differ from the paper's. Blank lines are left out of all counts
of lines: these rules were made for extracted web pages, which have none. C4's list of bad words is not used.
"""

import math
import re
from collections.abc import Callable

from herd.data.text.passage import Passage
from herd.data.text.repetition import DUPLICATES, duplicate_chars
from herd.data.text.thresholds import Thresholds

DocumentFilter = Callable[[Passage, Thresholds], bool]

TERMINAL = tuple(".!?…\"'”’»。！？」』．؟۔।॥፡።")
"""Ends of sentences, and of quotations, in the scripts of the languages that have thresholds and some others."""
_BULLETS = ("•", "‣", "▪", "●", "◦", "-", "* ", "– ")
_ELLIPSES = ("...", "…")
_SENTENCE_END = re.compile(r"[.!?…](?=\s|[\"'”’»)]|$)|[。！？؟۔।]")
MIN_SENTENCES = 5
SHORT_LINE = 30
"""Characters of a line that is called short."""


def _share(part: float, whole: float) -> float:
    """Divided as in datatrove, so that decisions at a threshold are equal; no number where there is nothing."""
    return part / whole if whole else math.nan


def gopher_words(passage: Passage, limits: Thresholds) -> bool:
    """Fewer than 50 or more than 100,000 words (Gopher)."""
    number = passage.words[0] / limits.tokens_per_word
    return not limits.min_words <= number <= limits.max_words


def gopher_word_length(passage: Passage, limits: Thresholds) -> bool:
    """A mean word of fewer than 3 or more than 10 characters (Gopher); other bounds by language (FineWeb2)."""
    number, chars = passage.words
    low, high = limits.word_length
    mean = _share(chars, number)
    return limits.tokens_per_word == 1 and (mean < low or mean > high)


def gopher_symbols(passage: Passage, limits: Thresholds) -> bool:
    """More than one hash mark, or more than one ellipsis, in ten words (Gopher)."""
    text = passage.text
    number = max(text.count("#"), text.count("...") + text.count("…"))
    return _share(number, passage.num_tokens / limits.tokens_per_word) > limits.symbols_per_word


def gopher_bullets(passage: Passage, limits: Thresholds) -> bool:
    """More than 90 % of the lines begin with a bullet (Gopher); `-` and `*` are bullets too."""
    number = sum([line.startswith(_BULLETS) for line in passage.lines])
    return _share(number, len(passage.lines)) > limits.bullet_lines


def gopher_ellipses(passage: Passage, limits: Thresholds) -> bool:
    """More than 30 % of the lines end with an ellipsis (Gopher)."""
    number = sum([line.endswith(_ELLIPSES) for line in passage.lines])
    return _share(number, len(passage.lines)) > limits.ellipsis_lines


def gopher_alphabetic(passage: Passage, limits: Thresholds) -> bool:
    """Fewer than 80 % of the words have a letter (Gopher). Punctuation marks are no words; in datatrove they are."""
    return _share(*passage.alphabetic) < limits.alphabetic_words


def gopher_stop_words(passage: Passage, limits: Thresholds) -> bool:
    """Fewer than two of the language's stop words (Gopher); other words by language (FineWeb2)."""
    return bool(limits.stop_words) and passage.count(limits.stop_words) < limits.min_stop_words


def fineweb_punctuation(passage: Passage, limits: Thresholds) -> bool:
    """Fewer than 12 % of the lines end with punctuation (FineWeb); other shares by language (FineWeb2)."""
    number = sum([line.endswith(TERMINAL) for line in passage.lines])
    return _share(number, len(passage.lines)) < limits.line_punctuation


def fineweb_short_lines(passage: Passage, limits: Thresholds) -> bool:
    """More than 67 % of the lines have at most 30 characters (FineWeb); not asked of other languages (FineWeb2)."""
    number = sum([len(line) <= SHORT_LINE for line in passage.lines])
    return _share(number, len(passage.lines)) > limits.short_lines


def fineweb_duplicate_lines(passage: Passage, limits: Thresholds) -> bool:
    """More than 1 % of the characters are in repeated lines (FineWeb's code; 10 % in its paper and in FineWeb2)."""
    return _share(duplicate_chars(passage.lines), sum(map(len, passage.lines))) > limits.duplicate_line_chars


def fineweb_newlines(passage: Passage, limits: Thresholds) -> bool:
    """More than 0.3 line ends for a word (FineWeb); other numbers by language (FineWeb2)."""
    words = passage.num_tokens / limits.tokens_per_word
    return _share(len(passage.lines) - 1, words) > limits.newlines_per_word


def c4_lorem_ipsum(passage: Passage, limits: Thresholds) -> bool:
    """The words `lorem ipsum` (C4)."""
    return "lorem ipsum" in passage.text.lower()


def c4_curly_bracket(passage: Passage, limits: Thresholds) -> bool:
    """A curly bracket, for code (C4)."""
    return "{" in passage.text


def c4_sentences(passage: Passage, limits: Thresholds) -> bool:
    """Fewer than 5 sentences (C4's first version and its code; 3 in the paper of 2020)."""
    return len(_SENTENCE_END.findall(passage.text)) < MIN_SENTENCES


DOCUMENT_FILTERS: dict[str, DocumentFilter] = {
    "gopher_words": gopher_words,
    "gopher_word_length": gopher_word_length,
    "gopher_symbols": gopher_symbols,
    "gopher_bullets": gopher_bullets,
    "gopher_ellipses": gopher_ellipses,
    "gopher_alphabetic": gopher_alphabetic,
    "gopher_stop_words": gopher_stop_words,
    "fineweb_punctuation": fineweb_punctuation,
    "fineweb_short_lines": fineweb_short_lines,
    "fineweb_duplicate_lines": fineweb_duplicate_lines,
    "fineweb_newlines": fineweb_newlines,
    "c4_lorem_ipsum": c4_lorem_ipsum,
    "c4_curly_bracket": c4_curly_bracket,
    "c4_sentences": c4_sentences,
    **DUPLICATES,
}
"""By the fields of CleaningConfig that switch them, in the order in which they are asked, the costly ones last; the
first that drops a document is its reason."""
