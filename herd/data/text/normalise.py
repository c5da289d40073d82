"""Text in one form: Unicode NFC, one kind of line end and space, no control characters; and text that is damaged."""

import re
import unicodedata

_SPACE = re.compile(r"\s+")
# The two joiners stay: Hindi and Arabic spell with them.
_INVISIBLE = "\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufffd\ue000-\uf8ff"
_CONTROLS = re.compile(f"[\x00-\x08\x0e-\x1f\x7f-\x9f{_INVISIBLE}]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_LINE_CONTROLS = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_INVISIBLE}]")
_BLANK_LINES = re.compile(r"\n{3,}")
_SURROGATES = re.compile("[\ud800-\udfff]")
# What UTF-8 looks like when it is read as Latin-1 or Windows-1252: a lead byte, then a continuation byte.
_MOJIBAKE = re.compile("[ÂÃÐÑØÙâã][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œ]|\ufffd")
MAX_MOJIBAKE_SHARE = 0.005


def normalise(text: str) -> str:
    """NFC, one space for any run of white space, no control characters: for a text of one line."""
    text = unicodedata.normalize("NFC", text)
    return _SPACE.sub(" ", _CONTROLS.sub("", text)).strip()


def normalise_lines(text: str) -> str:
    """NFC, LF line ends, no control characters, no spaces at a line's end, at most one blank line in a row."""
    # Most texts have nothing that must go, and then this is ten times as fast. All of it but U+FFFD is not printable.
    if not text.replace("\n", " ").isprintable() or "\ufffd" in text:
        text = _LINE_CONTROLS.sub("", _LINE_ENDS.sub("\n", text))
    text = unicodedata.normalize("NFC", text)
    text = "\n".join([line.rstrip() for line in text.split("\n")]).strip("\n")
    return _BLANK_LINES.sub("\n\n", text) if "\n\n\n" in text else text


def is_mojibake(text: str) -> bool:
    """Whether one character in 200 or more is what a wrong encoding makes of others. FineWeb2 repairs such text by
    ftfy; here it is dropped, so that the source can be read again with the right encoding."""
    return not text.isascii() and len(_MOJIBAKE.findall(text)) > MAX_MOJIBAKE_SHARE * len(text)


def without_surrogates(text: str) -> str:
    """Lone surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
