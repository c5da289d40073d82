"""Misspelt words of a mostly English text as the frequent words that they are one slip away from.

A slip is a letter too many or too few, a wrong one, or two that changed places. Candidates are found by deletions: a
word and its misspelling share a form of which one letter is left out (symmetric deletion, as SymSpell has it).
"""

import re
from collections.abc import Mapping
from functools import cached_property

SHORTEST, LONGEST = 4, 16
"""Letters of words that are corrected: shorter ones have too many neighbours."""
FEWEST = 0.03
"""Share of a text's words from which its misspellings count: names and terms are rare, slips on purpose are not."""
_WORD = re.compile(r"[A-Za-z]+(?![\w'’-])")
_ENDINGS = (("s", ""), ("es", ""), ("d", ""), ("ed", ""), ("ing", ""), ("ing", "e"), ("ly", ""), ("er", ""), ("r", ""))


def shortened(word: str) -> set[str]:
    """The word, and the word without each of its letters."""
    return {word, *(word[:at] + word[at + 1 :] for at in range(len(word)))}


def one_slip(first: str, second: str) -> bool:
    """Whether one letter more, less or other, or two neighbours changed, lies between two different words."""
    if len(first) > len(second):
        first, second = second, first
    at = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
    if len(first) < len(second):
        return first[at:] == second[at + 1 :]
    return first[at + 1 :] == second[at + 1 :] or (
        first[at : at + 2] == second[at : at + 2][::-1] and first[at + 2 :] == second[at + 2 :]
    )


class Speller:
    """Corrects towards words with their frequencies."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = counts
        self._nearest: dict[str, str] = {}

    @cached_property
    def _forms(self) -> dict[str, list[str]]:
        forms: dict[str, list[str]] = {}
        for word in self.counts:
            if SHORTEST <= len(word) <= LONGEST:
                for form in shortened(word):
                    forms.setdefault(form, []).append(word)
        return forms

    def nearest(self, word: str) -> str:
        """The most frequent word one slip away from a lower-case word; the word itself where it is known, or an
        inflection of a known one, or nothing is near."""
        if word not in self._nearest:
            if len(self._nearest) > 1 << 16:
                self._nearest.clear()
            self._nearest[word] = self._find(word)
        return self._nearest[word]

    def _find(self, word: str) -> str:
        counts = self.counts
        if not SHORTEST <= len(word) <= LONGEST or word in counts:
            return word
        if any(word.endswith(end) and word[: -len(end)] + stem in counts for end, stem in _ENDINGS):
            return word
        near = {one for form in shortened(word) for one in self._forms.get(form, ()) if one_slip(word, one)}
        return max(near, key=lambda one: (counts[one], one), default=word)

    def corrected(self, text: str) -> str:
        """The text with its misspelt words corrected; `text` itself where there are few."""
        words = changed = 0

        def replaced(match: re.Match[str]) -> str:
            nonlocal words, changed
            words += 1
            word = match[0]
            low = word.lower()
            if (near := self.nearest(low)) == low:
                return word
            changed += 1
            return near.upper() if word.isupper() else near.capitalize() if word[0].isupper() else near

        made = _WORD.sub(replaced, text)
        return made if changed and changed >= FEWEST * words else text
