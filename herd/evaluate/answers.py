"""When two answers are the same, and in which language an answer is."""

import re
from collections.abc import Iterable, Mapping

from herd.data.text.spelling import normalise

MATCH_RULE = (
    "An answer is right when it equals the expected one after NFKC, case folding, punctuation and symbols read as "
    "spaces, and leading articles dropped (en de fr es it pt)."
)

LANGUAGE_RULE = (
    "An answer that is a known name (of any picture, in all splits) in the language asked counts as right; one that "
    "is a known name in other languages only counts as wrong. Any other answer is looked at word by word (in ja and zh "
    "character by character, Latin words aside): right when no language has more of its words in its names than the "
    "language asked, and that has at least one. Overlap: the share of these answers that would count as right had "
    "another language been asked, the mean over the others; names shared between languages make it more than 0."
)


def _units(answer: str, language: str) -> set[str]:
    """Words; in languages without spaces every character, but for letters and digits of the ASCII set."""
    return set(re.findall(r"[a-z0-9]+|\S", answer) if language in {"ja", "zh"} else answer.split())


class LanguageOfAnswers:
    """Judges answers by the names known in each language: see LANGUAGE_RULE."""

    def __init__(self, names: Mapping[str, Iterable[str]]) -> None:
        self._names = {
            language: {normalise(name, language) for name in known} - {""} for language, known in names.items()
        }
        self._units = {
            language: set().union(*(_units(name, language) for name in known))
            for language, known in self._names.items()
        }

    def knows(self, answer: str, language: str) -> bool:
        """Whether the answer is one of the language's names."""
        return normalise(answer, language) in self._names.get(language, set())

    def is_in(self, answer: str, language: str) -> bool:
        """Whether the answer counts as being in `language`."""
        if self.knows(answer, language):
            return True
        if any(self.knows(answer, other) for other in self._names):
            return False
        found = {}
        for other, known in self._units.items():
            units = _units(normalise(answer, other), other)
            found[other] = len(units & known) / max(1, len(units))
        return found.get(language, 0.0) > 0 and found[language] >= max(found.values())
