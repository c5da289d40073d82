"""When two names are the same: the form in which they are compared."""

import unicodedata
from collections.abc import Mapping

ARTICLES = {
    "en": {"a", "an", "the"},
    "de": {"ein", "eine", "einen", "einem", "einer", "eines", "der", "die", "das", "den", "dem", "des"},
    "fr": {"un", "une", "des", "le", "la", "les", "l", "du", "de", "d"},
    "es": {"un", "una", "unos", "unas", "el", "la", "los", "las"},
    "it": {"un", "uno", "una", "il", "lo", "la", "i", "gli", "le", "l"},
    "pt": {"um", "uma", "uns", "umas", "o", "a", "os", "as"},
}
"""Words that may stand before a name; languages that are not listed have none."""


def normalise(text: str, language: str) -> str:
    """The form in which names are compared: NFKC, case folded, punctuation and symbols as spaces, no articles."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = []
    for character in folded:
        kind = unicodedata.category(character)
        if kind != "Cf":  # joiners and marks of direction are not seen
            kept.append(" " if kind[0] in "PSZC" else character)
    words = "".join(kept).split()
    articles = ARTICLES.get(language, set())
    while len(words) > 1 and words[0] in articles:
        words.pop(0)
    return " ".join(words)


def spellings(names: Mapping[str, str]) -> set[str]:
    """The names by language, as they are compared, whatever the language."""
    return {normalise(name, language) for language, name in names.items()} - {""}
