"""Letters that look alike, invisible characters and digits for letters: a text as a person reads it, in plain letters.

Everything is decided by Unicode's own tables (`unicodedata`) and by the short lists here. A letter of another script
is replaced only in words that mix scripts or that consist of look-alikes only in a mostly Latin text, so that Russian
and Greek stay what they are.
"""

import itertools
import re
import unicodedata
from collections.abc import Container
from functools import lru_cache

MARK = "\u241b"
"""U+241B, the sign of an escape, which stands before text that was hidden or encoded."""

_CYRILLIC = "а a в b е e з 3 и u к k м m н h о o п n р p с c т t у y х x ь b і i ј j ѕ s ԁ d ԛ q ԝ w һ h ӏ l ө o ү y"
_GREEK = "α a β b γ y ε e η n ι i κ k μ u ν v ο o ρ p σ o τ t υ u χ x ω w"
_OTHER = (
    "ı i ȷ j ɑ a ɡ g ɩ i ʋ v ʏ y ɪ i ʀ r ɴ n ɢ g ʟ l ʙ b ʜ h ᴀ a ᴄ c ᴅ d ᴇ e ᴊ j ᴋ k ᴍ m ᴏ o ᴘ p ᴛ t ᴜ u ᴠ v "
    "ᴡ w ᴢ z ꜰ f ꜱ s ɛ e ɔ c ə e ɐ a ɥ h ɯ m ɹ r ʇ t ʌ v ʍ w ʎ y ø o đ d ħ h ł l ŧ t æ ae œ oe ß ss þ p ð d "
    "ƒ f ∂ d € e £ l ¥ y օ o ս u ո n հ h ց g զ q ѵ v ꓮ a ꓐ b ꓚ c ꓓ d ꓰ e ꓝ f ꓖ g ꓧ h ꓲ i ꓙ j ꓗ k ꓡ l ꓟ m ꓠ n "
    "ꓳ o ꓑ p ꓣ r ꓢ s ꓔ t ꓴ u ꓦ v ꓪ w ꓫ x ꓬ y ꓜ z"
)


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


LOOK_ALIKES = {**_pairs(_CYRILLIC), **_pairs(_GREEK), **_pairs(_OTHER)}
"""A lower-case letter of another script to the Latin letters that it looks like."""

LEET = {
    **dict(
        zip("034578926@$!+€£", ("o", "e", "a", "s", "t", "b", "g", "z", "g", "a", "s", "i", "t", "e", "l"), strict=True)
    ),
    "1": "il",
    "|": "li",
}
"""A digit or sign to the letters that it may stand for within a word."""
READINGS = 16
"""Ways to read a word with digits that are tried."""

_WRITTEN = frozenset("ıæœøđħłŧßþðəɛɔƒʋ€£¥")
"""Look-alikes that Latin orthographies have: these alone do not make a word suspicious."""

_REGIONAL, _TAG, _SELECTOR = 0x1F1E6, 0xE0000, 0xE0100
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LEET_WORD = re.compile(r"(?<![0-9@$!|+€£A-Za-z])[0-9@$!|+€£A-Za-z]{2,}")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LEET_SIGNS = re.compile(r"(?<![^\s])[0-9@$!|+€£]{2,}(?![^\s.,;:?])")
_TAGS = re.compile("[\U000e0020-\U000e007e]{9,}")
_ASCII_LETTER = re.compile(r"[A-Za-z]")


@lru_cache(maxsize=65_536)
def script_of(letter: str) -> str:
    """`LATIN`, `CYRILLIC`, `CJK` …: the first word of a letter's name; empty for what is no letter."""
    return unicodedata.name(letter, "").partition(" ")[0].partition("-")[0] if letter.isalpha() else ""


def visible(text: str) -> str:
    """Without what cannot be seen: zero-width and other format characters, controls, marks piled on letters. Text
    hidden in tag characters or variation selectors is written out."""
    if text.isascii():
        return _CONTROLS.sub("", text)
    out, marks = [], 0
    for letter in unicodedata.normalize("NFKC", _hidden(text)):
        kind = unicodedata.category(letter)
        if kind in {"Cf", "Co", "Cn", "Cs"} or (kind == "Cc" and letter not in "\n\t\r"):
            continue
        # Two marks on a letter occur in Vietnamese, Hebrew and Hindi; more are decoration.
        marks = marks + 1 if kind in {"Mn", "Me"} else 0
        if marks <= 2 and not 0xFE00 <= ord(letter) <= 0xFE0F:
            out.append(letter)
    return "".join(out)


def _hidden(text: str) -> str:
    if text.isascii():
        return text
    out = []
    # Flags of regions have six of them.
    for letter in _TAGS.sub(lambda run: f"{MARK} {run[0]}", text):
        code = ord(letter)
        if 0x20 <= code - _TAG < 0x7F:
            out.append(chr(code - _TAG))
        elif 0 <= code - _SELECTOR < 0xF0:  # bytes 16 to 255 as variation selectors
            out.append(chr(code - _SELECTOR + 16) if 0x20 <= code - _SELECTOR + 16 < 0x7F else "")
        elif 0 <= code - _REGIONAL < 26:
            out.append(chr(code - _REGIONAL + ord("a")))
        else:
            out.append(letter)
    return "".join(out)


def plain_letters(text: str) -> str:
    """With look-alikes of Latin letters replaced in words that have some, and accents removed from Latin letters of
    words that mix scripts or pile marks."""
    if text.isascii():
        return text
    latin = len(_ASCII_LETTER.findall(text)) * 2 > sum(letter.isalpha() for letter in text)

    def replaced(match: re.Match[str]) -> str:
        word = match[0]
        if word.isascii():
            return word
        scripts = {script_of(letter) for letter in word} - {""}
        foreign = [letter.lower() for letter in word if script_of(letter) not in {"", "LATIN"}]
        mixed = "LATIN" in scripts and len(scripts) > 1
        disguised = latin and bool(foreign) and all(letter in LOOK_ALIKES for letter in foreign)
        odd = any(letter.lower() in LOOK_ALIKES and letter.lower() not in _WRITTEN for letter in word if not foreign)
        if not (mixed or disguised or odd):
            return word
        return "".join(LOOK_ALIKES.get(letter.lower(), letter) for letter in word)

    stripped = _unmarked(text) if _is_piled(text) else text
    return _WORD.sub(replaced, stripped)


def _is_piled(text: str) -> bool:
    marks = sum(unicodedata.category(letter) in {"Mn", "Me"} for letter in text)
    return marks * 4 > sum(script_of(letter) == "LATIN" for letter in text) > 0


def _unmarked(text: str) -> str:
    parts = unicodedata.normalize("NFD", text)
    return "".join(letter for letter in parts if unicodedata.category(letter) not in {"Mn", "Me"})


def unleet(text: str, words: Container[str]) -> str:
    """With digits and signs inside words read as letters, `1gn0r3` as `ignore`, where that makes one of `words`. In a
    text that has several such words, those of digits and signs alone, such as `411`, are read so too, and so are words
    that are mostly letters, whatever comes of it."""
    changed, pattern = 0, _LEET_WORD

    def replaced(match: re.Match[str]) -> str:
        nonlocal changed
        word = match[0]
        core = word.rstrip("!|+") or word
        if pattern is _LEET_WORD and not _ASCII_LETTER.search(core):
            return word
        if core.isalpha() or not 2 <= len(core) <= 24 or core.lower() in words:
            return word
        choices = itertools.product(*(LEET.get(letter, letter) for letter in core.lower()))
        for letters in itertools.islice(choices, READINGS):
            if (read := "".join(letters)) in words:
                changed += 1
                return read + word[len(core) :]
        return word

    text = pattern.sub(replaced, text)
    if changed > 2:
        pattern = _LEET_SIGNS
        text = pattern.sub(replaced, text)
        text = _LEET_WORD.sub(_first_letters, text)
    return text


def _first_letters(match: re.Match[str]) -> str:
    # A name or a rare word, in a text whose other words are written so.
    word = match[0]
    core = word.rstrip("!|+") or word
    if core.isalpha() or len(core) < 3 or 2 * len(_ASCII_LETTER.findall(core)) < len(core):
        return word
    return "".join(LEET.get(letter, letter)[0] for letter in core) + word[len(core) :]
