"""An answer to parts that a channel takes: at most so many characters or bytes, no grapheme broken."""

from collections.abc import Callable
from typing import Literal

import regex

Unit = Literal["characters", "bytes"]
BREAKS = ("\n\n", "\n", ". ", "! ", "? ", "。", "！", "？", "؟ ", "। ", "; ", ", ", "、", "，", " ")
"""Where a text is cut, best first; after the mark."""
# A space that a combining mark follows is the letter that carries it.
SPACE_BEFORE = regex.compile(r"\A(?:\s(?![\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}]))+")


def split_text(text: str, cap: int, unit: Unit) -> list[str]:
    """Parts of `text` of at most `cap`, cut at a paragraph, a line, a sentence or a word where one ends in the second
    half, else between graphemes. Space at the ends of parts is dropped, and nothing else.

    Characters are counted as UTF-16 does, which is never fewer than code points: Meta says only "characters". A single
    grapheme beyond the cap (hundreds of combining marks) is cut between code points.
    """
    size: Callable[[str], int] = _num_bytes if unit == "bytes" else _num_utf16
    parts, rest = list[str](), _strip(text)
    while size(rest) > cap:
        end = _fitting(rest, cap, size)
        head = rest[:end]
        for mark in BREAKS:
            at = head.rfind(mark)
            if at >= 0 and size(head[: at + len(mark)]) * 2 > cap and _is_border(rest, at + len(mark)):
                head = head[: at + len(mark)]
                break
        rest = _strip(rest[len(head) :])
        if _strip(head):
            parts.append(_strip(head))
    return [*parts, rest] if rest else parts


def _strip(text: str) -> str:
    return SPACE_BEFORE.sub("", text).rstrip()


def _fitting(text: str, cap: int, size: Callable[[str], int]) -> int:
    """The number of code points of the longest beginning that fits and ends between graphemes."""
    total = end = 0
    for match in regex.finditer(r"\X", text):
        total += size(match[0])
        if total > cap:
            break
        end = match.end()
    if end:
        return end
    while size(text[: end + 1]) <= cap:
        end += 1
    return max(1, end)


def _is_border(text: str, at: int) -> bool:
    """Whether no grapheme spans `at`; a combining mark may follow a space."""
    return at >= len(text) or regex.match(r"\X", text[at - 1 :]).end() == 1


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _num_utf16(text: str) -> int:
    return len(text.encode("utf-16-le", "replace")) // 2
