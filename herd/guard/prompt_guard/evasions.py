"""Ways to write a text so that a filter does not read it: what training augments with, and what the bench measures."""

import base64
import binascii
import codecs
import re
from collections.abc import Callable

import numpy as np

from herd.guard.prompt_guard.decode import ATBASH, BRAILLE, MORSE
from herd.guard.prompt_guard.letters import LOOK_ALIKES

Evasion = Callable[[str, np.random.Generator], str]

_ALIKE: dict[str, list[str]] = {}
for _foreign, _latin in LOOK_ALIKES.items():
    if len(_latin) == 1 and _foreign > "\u02ff":
        _ALIKE.setdefault(_latin, []).append(_foreign)
_LEET = {"a": "4@", "e": "3", "i": "1!", "o": "0", "s": "5$", "t": "7", "g": "9", "b": "8", "l": "1"}
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_MARKS = "".join(map(chr, range(0x300, 0x36F)))
_TO_MORSE = {letter: code for code, letter in MORSE.items()}
_TO_BRAILLE = {letter: cell for cell, letter in BRAILLE.items()}


def _each(text: str, rng: np.random.Generator, share: float, change: Callable[[str], str]) -> str:
    draws = rng.random(len(text))
    return "".join(change(letter) if draw < share else letter for letter, draw in zip(text, draws, strict=True))


def spacing(text: str, rng: np.random.Generator) -> str:
    """`i g n o r e`, with one of several signs between letters, words apart by a wider gap or not."""
    sign = str(rng.choice([" ", " ", ".", "-", "_"]))
    gap = str(rng.choice(["   ", " "])) if sign == " " else " "
    return gap.join(sign.join(word) for word in text.split())


def homoglyph(text: str, rng: np.random.Generator) -> str:
    """Half of the letters as look-alikes of other scripts."""
    return _each(text, rng, 0.5, lambda a: str(rng.choice(_ALIKE[a.lower()])) if a.lower() in _ALIKE else a)


def zero_width(text: str, rng: np.random.Generator) -> str:
    """Invisible characters inside words."""
    return _each(text, rng, 0.5, lambda a: a + str(rng.choice(list(_INVISIBLE))))


def leetspeak(text: str, rng: np.random.Generator) -> str:
    """Digits and signs for letters."""
    return _each(text, rng, 0.7, lambda a: str(rng.choice(list(_LEET[a.lower()]))) if a.lower() in _LEET else a)


def base_64(text: str, rng: np.random.Generator) -> str:
    """The whole text as base64."""
    return base64.b64encode(text.encode()).decode()


def hexadecimal(text: str, rng: np.random.Generator) -> str:
    """The whole text as hexadecimal digits."""
    return binascii.hexlify(text.encode()).decode()


def rot13(text: str, rng: np.random.Generator) -> str:
    """Letters moved by thirteen places."""
    return codecs.encode(text, "rot13")


def reversed_text(text: str, rng: np.random.Generator) -> str:
    """Each line from its end."""
    return "\n".join(line[::-1] for line in text.split("\n"))


def no_spaces(text: str, rng: np.random.Generator) -> str:
    """Words written together."""
    return "\n".join("".join(line.split()) for line in text.split("\n"))


def full_width(text: str, rng: np.random.Generator) -> str:
    """Full-width letters."""
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)


def tag_characters(text: str, rng: np.random.Generator) -> str:
    """Invisible tag characters of Unicode."""
    return "".join(chr(0xE0000 + ord(letter)) if " " <= letter <= "~" else letter for letter in text)


def piled_marks(text: str, rng: np.random.Generator) -> str:
    """Several marks piled on each letter."""
    return _each(text, rng, 0.8, lambda a: a + "".join(rng.choice(list(_MARKS), 3)) if a.isalpha() else a)


def atbash(text: str, rng: np.random.Generator) -> str:
    """The alphabet from its end."""
    return text.translate(ATBASH)


def morse(text: str, rng: np.random.Generator) -> str:
    """Morse code of the letters."""
    words = ([_TO_MORSE[letter] for letter in word.lower() if letter in _TO_MORSE] for word in text.split())
    return " / ".join(" ".join(word) for word in words if word)


def braille(text: str, rng: np.random.Generator) -> str:
    """Braille cells of the letters."""
    return "".join(_TO_BRAILLE.get(letter.lower(), " " if letter.isspace() else "") for letter in text)


def typos(text: str, rng: np.random.Generator) -> str:
    """Letters swapped, dropped or doubled."""
    letters = list(text)
    for at in rng.integers(0, max(len(letters), 1), len(letters) // 12 + 1):
        if at + 1 < len(letters) and letters[at].isalpha() and letters[at + 1].isalpha():
            kind = rng.integers(3)
            if kind == 0:
                letters[at], letters[at + 1] = letters[at + 1], letters[at]
            else:
                letters[at] = "" if kind == 1 else letters[at] * 2
    return "".join(letters)


_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_KEYS = {
    key: [near for other in _ROWS[max(0, row - 1) : row + 2] for near in other[max(0, at - 1) : at + 2] if near != key]
    for row, keys in enumerate(_ROWS)
    for at, key in enumerate(keys)
}


def slips(text: str, rng: np.random.Generator) -> str:
    """What fingers do: in one word in four to twelve a key beside the right one, a letter twice or not at all, or two
    letters in the wrong order, the first letter mostly right."""
    share = 1 / float(rng.uniform(4, 12))

    def slip(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() > share:
            return word
        at = int(rng.integers(len(word))) if rng.random() < 0.1 else int(rng.integers(1, len(word)))
        match int(rng.integers(4)):
            case 0:
                near = _KEYS.get(word[at].lower(), [word[at]])
                return word[:at] + near[int(rng.integers(len(near)))] + word[at + 1 :]
            case 1:
                return word[:at] + word[at] + word[at:]
            case 2:
                return word[:at] + word[at + 1 :]
            case _:
                at = min(at, len(word) - 2)
                return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return re.sub(r"[^\W\d_]{3,}", slip, text)


def lower_case(text: str, rng: np.random.Generator) -> str:
    """Without capitals, as look-alikes and digits for letters are read."""
    return text.lower()


BARRED: dict[str, Evasion] = {
    "spacing": spacing,
    "homoglyph": homoglyph,
    "zero_width": zero_width,
    "leetspeak": leetspeak,
    "base64": base_64,
}
"""Those that the target names, besides translation, which no function makes."""

OTHERS: dict[str, Evasion] = {
    "hexadecimal": hexadecimal,
    "rot13": rot13,
    "reversed": reversed_text,
    "no_spaces": no_spaces,
    "full_width": full_width,
    "tag_characters": tag_characters,
    "piled_marks": piled_marks,
    "atbash": atbash,
    "morse": morse,
    "braille": braille,
    "typos": typos,
}
EVASIONS = BARRED | OTHERS
TRAINED: dict[str, Evasion] = {name: evade for name, evade in EVASIONS.items() if name != "typos"}
TRAINED |= {"slips": slips, "lower_case": lower_case}
"""Those that training augments with: typing errors are others there than those of the bench."""
HIDING = frozenset(("base64", "hexadecimal", "rot13", "reversed", "tag_characters", "atbash", "morse", "braille"))
"""Those after which a person does not see what a text says."""
