"""Filters of single lines.

C4 is Raffel et al. 2020, section 2.2, with the numbers of the published code.
"""

import re
from collections.abc import Callable

from herd.data.text.languages import may_be_language
from herd.data.text.passage import symbol_share

MAX_SYMBOL_SHARE = 0.35
MAX_WORD_CHARS = 1_000
MIN_WORDS_PER_LINE = 3
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_CITATIONS = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_C4_TERMINAL = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "؟", "।")


def mostly_symbols(line: str, language: str) -> bool:
    """More than 35 % digits and symbols."""
    return symbol_share(line) > MAX_SYMBOL_SHARE


def other_language(line: str, language: str) -> bool:
    """Surely in another language than its document."""
    return not may_be_language(line, language)


def c4_long_words(line: str, language: str) -> bool:
    """A word of more than 1,000 characters (C4's code)."""
    start = 0
    while len(line) - start > MAX_WORD_CHARS:
        space = line.rfind(" ", start, start + MAX_WORD_CHARS + 1)
        if space < 0:
            return max(map(len, line[start:].split()), default=0) > MAX_WORD_CHARS
        start = space + 1
    return False


def c4_policy(line: str, language: str) -> bool:
    """A notice about cookies, privacy or terms of use (C4)."""
    lower = line.lower()
    return any(phrase in lower for phrase in POLICY)


def c4_javascript(line: str, language: str) -> bool:
    """The word JavaScript, as in requests to switch it on (C4)."""
    return "javascript" in line.lower()


def c4_terminal_punctuation(line: str, language: str) -> bool:
    """No terminal punctuation mark at the end, or an ellipsis (C4)."""
    line = line.rstrip()
    return not line.endswith(_C4_TERMINAL) or line.endswith("...")


def c4_words_per_line(line: str, language: str) -> bool:
    """Fewer than 3 words (C4's first version and its code; 5 in the paper of 2020)."""
    return len(line.split()) < MIN_WORDS_PER_LINE


LINE_FILTERS: dict[str, Callable[[str, str], bool]] = {
    "line_symbols": mostly_symbols,
    "line_language": other_language,
    "c4_long_words": c4_long_words,
    "c4_policy": c4_policy,
    "c4_javascript": c4_javascript,
    "c4_terminal_punctuation": c4_terminal_punctuation,
    "c4_words_per_line": c4_words_per_line,
}
"""By the fields of CleaningConfig that switch them. Blank lines are not asked about."""
PHRASES = frozenset(("c4_long_words", "c4_policy", "c4_javascript"))
"""Filters that find no line in a text if they find nothing in the whole of it, which is faster to ask."""
REASONS = {"line_symbols": "symbols", "line_language": "other language"}
"""What the report calls them, where it is not the filter's name."""


def without_citations(line: str) -> str:
    """`line` without the marks of Wikipedia's citations and edit links (C4)."""
    return _CITATIONS.sub("", line) if "[" in line else line
