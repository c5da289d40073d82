"""Code in a model's answer: fenced blocks with the language that they name, or the whole answer if it is code.

Fences as CommonMark has them: three or more backticks or tildes, closed by at least as many. The last one may be left
open, as in an answer that was cut off.
"""

import json
import re
from dataclasses import dataclass, replace

from herd.guard.code.languages import DATA_NAMES, guess_language, language_named, looks_like_code

_FENCE = re.compile(r"^(?P<indent>[ \t]*(?:>[ \t]?)*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of code."""

    code: str
    language: str | None
    """None where it names none that is scanned, and looks like none."""
    named: str
    """What the answer calls the language."""
    line: int
    """Of the answer, from 1, where the code begins."""
    open: bool = False
    """Whether the answer ends inside."""


def code_blocks(answer: str, *, language: str | None = None) -> list[Block]:
    """The code of an answer that is asked for in `language`, where that is known. Blocks of data are left out."""
    fenced: list[Block] = []
    for block in _fenced(answer, language):
        if block.named in {"md", "markdown"} and _FENCE_ANYWHERE.search(block.code):
            inside = code_blocks(block.code, language=language)
            fenced += [replace(one, line=one.line + block.line - 1) for one in inside]
        elif not _is_data(block):
            fenced.append(block)
    if fenced or _FENCE_ANYWHERE.search(answer):
        return fenced
    if not looks_like_code(answer):
        return []
    return [Block(code=answer, language=language or guess_language(answer), named="", line=1)]


_FENCE_ANYWHERE = re.compile(r"^[ \t>]*(?:`{3}|~{3})", re.MULTILINE)


def _fenced(answer: str, language: str | None) -> list[Block]:
    blocks, opened = [], None
    lines = answer.split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        end = number > len(lines)
        fence = None if end else _FENCE.match(line.rstrip("\r"))
        if opened is None:
            if fence is not None:
                opened = (fence, number + 1)
            continue
        begun, start = opened
        closes = (
            fence is not None
            and not fence["info"].strip()
            and fence["mark"][0] == begun["mark"][0]
            and len(fence["mark"]) >= len(begun["mark"])
        )
        if not closes and not end:
            continue
        opened = None
        indent = begun["indent"]
        inside = [one.removeprefix(indent) for one in lines[start - 1 : number - 1]]
        blocks.append(_block("\n".join(inside), begun["info"], start, language, cut=end))
    return blocks


def _block(code: str, info: str, line: int, asked: str | None, *, cut: bool) -> Block:
    words = info.strip().split()
    named = words[0].strip("{}").lstrip(".").split(",")[0].lower() if words else ""
    known = language_named(named)
    if known is None and named in DATA_NAMES:
        # A fence that names no language: what was asked for, if it is not plainly something else.
        known = guess_language(code) or (asked if looks_like_code(code) else None)
    return Block(code=code, language=known, named=named, line=line, open=cut)


def _is_data(block: Block) -> bool:
    """Whether a block that names no language holds no code."""
    if not block.code.strip():
        return True
    if block.named not in DATA_NAMES:
        return False
    try:
        json.loads(block.code)
    except ValueError:
        return block.language is None and not looks_like_code(block.code)
    return True
