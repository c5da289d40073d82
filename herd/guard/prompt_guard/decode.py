"""Encoded passages of a text, decoded: base64, base32, hexadecimal, binary, ASCII85, percent and HTML escapes, Morse,
Braille, ROT13, Atbash and reversed text.

A passage is replaced only where its decoded form is readable text, so a hash, a key or a picture stays as it is. MARK
stands before what was decoded, so that the guard can tell hidden words from open ones; escapes of URLs, HTML and JSON,
which ordinary texts have, get none.
"""

import base64
import binascii
import html
import re
from collections.abc import Callable
from urllib.parse import unquote

from herd.guard.prompt_guard.letters import MARK
from herd.guard.prompt_guard.words import Lexicon

MIN_LETTERS = 6
"""A decoded passage has at least so many letters: shorter ones are mostly accidents."""
SHORT = 16
"""A decoded passage of fewer bytes has to be plain English letters, mostly."""
KNOWN = 12
"""Letters in known words of a deciphered line: a line of code such as `cbc = {}` is a word in ROT13 by accident."""

_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])(?:[A-Za-z0-9+/_-]{8,}\s?)+={0,2}")
_BASE32 = re.compile(r"\b(?:[A-Z2-7]{8,}\s?)+={0,6}")
_HEX = re.compile(r"\b(?:(?:0x|\\x)?[0-9A-Fa-f]{2}[\s:,]?){6,}")
_BINARY = re.compile(r"\b(?:[01]{8}\s?){3,}")
_DECIMAL = re.compile(r"\b(?:[0-9]{2,3}[\s,]+){5,}[0-9]{2,3}\b")
_BASE85 = re.compile(r"(?<!\S)(?:<~)?[!-u]{15,}(?:~>)?(?!\S)")
_MORSE = re.compile(r"(?<![\w.\-/])[.\-]{1,6}(?:(?:\s+|\s*/\s*)[.\-]{1,6}){4,}")
_BRAILLE = re.compile(r"[\u2800-\u28ff](?:[\u2800-\u28ff ]*[\u2800-\u28ff])?")
_PERCENT = re.compile(r"(?<!\S)(?:[^\s%]*+%[0-9A-Fa-f]{2}){3,}\S*")
_ENTITY = re.compile(r"&(?:#[0-9]{2,6}|#x[0-9A-Fa-f]{2,5}|[a-z]{2,8});")
_ESCAPES = re.compile(r"(?:\\u[0-9A-Fa-f]{4}){3,}")

_MORSE_CODES = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.."
)
MORSE = dict(zip(_MORSE_CODES.split(), "abcdefghijklmnopqrstuvwxyz", strict=True))
BRAILLE = dict(zip("⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵", "abcdefghijklmnopqrstuvwxyz", strict=True))
_LOWER = "abcdefghijklmnopqrstuvwxyz"
ROT13 = str.maketrans(_LOWER + _LOWER.upper(), _LOWER[13:] + _LOWER[:13] + (_LOWER[13:] + _LOWER[:13]).upper())
ATBASH = str.maketrans(_LOWER + _LOWER.upper(), _LOWER[::-1] + _LOWER[::-1].upper())


def _text(data: bytes) -> str:
    """The bytes as text if they are readable, else nothing."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return ""
    plain = sum(letter.isalpha() or letter == " " for letter in text)
    if len(data) < SHORT and not (text.isascii() and 5 * plain >= 4 * len(text)):
        return ""
    return _words(text) if all(letter.isprintable() or letter in "\n\t" for letter in text) else ""


def _words(text: str) -> str:
    """The text if its letters may be words, else nothing: numbers of code are often one letter again and again, or the
    alphabet."""
    letters = [letter for letter in text.lower() if letter.isalpha()]
    varied = len(letters) >= MIN_LETTERS and len(set(letters)) >= 4 and letters != sorted(letters)
    return text if varied and 3 * len(letters) >= 2 * len(text) else ""


def _base64(match: str) -> str:
    joined = re.sub(r"\s", "", match).rstrip("=").replace("-", "+").replace("_", "/")
    if len(joined) < 10 or len(joined) % 4 == 1:
        return ""
    return _text(base64.b64decode(joined + "=" * (-len(joined) % 4)))


def _base32(match: str) -> str:
    joined = re.sub(r"\s", "", match).rstrip("=")
    try:
        return _text(base64.b32decode(joined + "=" * (-len(joined) % 8)))
    except binascii.Error:
        return ""


def _hex(match: str) -> str:
    digits = re.sub(r"0x|\\x|[\s:,]", "", match)
    return _text(bytes.fromhex(digits[: len(digits) // 2 * 2]))


def _binary(match: str) -> str:
    return _text(bytes(int(byte, 2) for byte in re.findall(r"[01]{8}", match)))


def _decimal(match: str) -> str:
    codes = [int(code) for code in re.findall(r"[0-9]+", match)]
    return _text(bytes(codes)) if max(codes) < 256 else ""


def _base85(match: str) -> str:
    inner = match.removeprefix("<~").removesuffix("~>")
    for decode in (base64.a85decode, base64.b85decode):
        try:
            if text := _text(decode(inner)):
                return text
        except (ValueError, binascii.Error):
            continue
    return ""


def _morse(match: str) -> str:
    words = [[MORSE.get(code, "") for code in word.split()] for word in re.split(r"\s*/\s*|\s{2,}|\n", match)]
    return _words(" ".join("".join(word) for word in words))


def _braille(match: str) -> str:
    return _words("".join(BRAILLE.get(cell, " " if cell in " \u2800" else "") for cell in match))


def _escapes(match: str) -> str:
    return re.sub(r"\\u([0-9A-Fa-f]{4})", lambda code: chr(int(code[1], 16)), match)


PASSAGES: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (_ESCAPES, _escapes),
    (_PERCENT, unquote),
    (_BINARY, _binary),
    (_DECIMAL, _decimal),
    (_HEX, _hex),
    (_BASE32, _base32),
    (_BASE64, _base64),
    (_BASE85, _base85),
    (_MORSE, _morse),
    (_BRAILLE, _braille),
)


def decoded(text: str, *, depth: int = 3) -> str:
    """`text` with its encoded passages decoded, again while there are some; `text` itself where there are none."""
    for _ in range(depth):
        before = text
        if len(_ENTITY.findall(text)) > 2:
            text = html.unescape(text)
        for pattern, decode in PASSAGES:
            mark = "" if pattern in (_ESCAPES, _PERCENT) else f"{MARK} "
            text = pattern.sub(lambda found, decode=decode, mark=mark: _kept(found[0], decode(found[0]), mark), text)  # type: ignore[misc]
        if text == before:
            break
    return re.sub(f"(?:{MARK} ){{2,}}", f"{MARK} ", text)


def _kept(passage: str, text: str, mark: str) -> str:
    if not text:
        return passage
    tail = passage[len(passage.rstrip()) :]
    return mark + text.removeprefix(mark) + tail


def deciphered(text: str, lexicon: Lexicon) -> str:
    """The text read through ROT13, Atbash or from its end, line by line, where that has clearly more known words
    than the line as it is; `text` itself where no line does."""
    return "".join(_line(line, lexicon) for line in text.splitlines(keepends=True))


def _line(line: str, lexicon: Lexicon) -> str:
    here = lexicon.known(line)
    letters = sum(letter.isalpha() for letter in line)
    if here > 0.6 or letters < KNOWN:
        return line
    best, share = line, max(0.6, here + 0.3, KNOWN / letters)
    for read in (line.translate(ROT13), line[::-1], line.translate(ATBASH)):
        if (known := lexicon.known(read)) >= share:
            best, share = f"{MARK} {read.strip()}" + line[len(line.rstrip()) :], known
    return best
