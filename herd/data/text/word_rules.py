"""spaCy's tokenizer without spaCy: its regular expressions and exceptions for each language, from `word_rules.json`.

It works on chunks, what is between white space: takes off prefixes and suffixes, splits what is left at infixes, and
puts together again what is an exception (spacy/tokenizer.pyx). The file is written by tests/parity/spacy_rules.py, and
tests/parity/test_words.py compares the words. Left out: of an exception that overlaps another one across white space,
spaCy may drop both.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

RULES = Path(__file__).with_name("word_rules.json")
JOINT = "\ue000"
"""In place of a space in an exception that is several chunks."""
OTHERS = "xx"
"""The rules of languages without rules of their own."""
MAX_CHUNK = 1_000
"""Characters of a chunk that the rules are followed for, as they take quadratic time."""
MAX_SUFFIX = 10
"""Characters of a suffix, unless it is dots."""

_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
_LETTER_RUN = re.compile(r"[^\W\d_]+")
_LATIN_OR_CYRILLIC = "[A-Za-zÀ-ÖØ-öø-ÿа-яА-Я]+"
_COMMON = re.compile(rf'(["(“]?)({_LATIN_OR_CYRILLIC}(?:-{_LATIN_OR_CYRILLIC})*)([")”]?)([,;:!?]|\.[")”]?)?')
"""Most of what is not letters alone: a word, or several with hyphens, in quotes or brackets, before a mark."""

Words = tuple[str, ...]


class SpacyRules:
    """spaCy's rules of a language (spacy/tokenizer.pyx)."""

    def __init__(self, language: str) -> None:
        languages = rules()["languages"]
        own = languages[language]
        words = f"{languages[OTHERS]['exceptions']}\n{own['exceptions']}".split("\n")
        words += sorted({form for word in own["cased"].split() for form in forms(word)})
        self._exceptions = {one.replace(" ", ""): tuple(one.split(" ")) for one in words}
        self._prefix, self._suffix, self._infix = (_compiled(own[name]) for name in ("prefix", "suffix", "infix"))
        self._token, self._url = _compiled(own["token"] or "(?!)"), _compiled(rules()["url"])
        for one in [one for one in self._exceptions if JOINT in one]:
            # spaCy looks for the words that its parts are split into without exceptions.
            if any(self._split(part, {}) != self._split(part, self._exceptions) for part in one.split(JOINT)):
                del self._exceptions[one]
        joined = "|".join(re.escape(one.replace(JOINT, " ")) for one in self._exceptions if JOINT in one)
        self._joined = re.compile(rf"(?<!\w)(?:{joined})(?!\w)") if joined else None
        self._rejoined: dict[str, list[Words]] = {}
        """By their first word, exceptions as they are split otherwise, where that is into several words."""
        for one in self._exceptions:
            parts = self._split(one, {})
            if len(parts) > 1:
                self._rejoined.setdefault(parts[0], []).append(parts)
        self._spelt = frozenset(part for one in self._exceptions for part in _LETTER_RUN.findall(one))
        """What of letters is in an exception: chunks without it follow the regular expressions alone."""
        self._splits_dots = self._suffix.search("a.") is not None
        splits_hyphens = all(len(self._split(one, {})) == 3 for one in ("a-b", "a-B", "A-b", "A-B"))
        self._splits_hyphens = splits_hyphens and not own["token"] and not own["cased"]

    def chunks(self, text: str) -> Sequence[str]:
        if self._joined:
            text = self._joined.sub(lambda match: match.group().replace(" ", JOINT), text)
        return text.split()

    def split(self, chunk: str) -> Words:
        if len(chunk) > MAX_CHUNK:
            return tuple(_WORD_OR_MARK.findall(chunk))
        if chunk.isalpha() and chunk not in self._spelt and not self._prefix.match(chunk):
            return (chunk,)
        if found := _COMMON.fullmatch(chunk):
            opening, compound, closing, end = found.groups("")
            parts = compound.split("-")
            if (
                self._spelt.isdisjoint(parts)
                and (self._splits_hyphens or len(parts) == 1)
                and (end[:1] != "." or (self._splits_dots and (closing or compound[-1].islower())))
                and not self._prefix.match(compound)
            ):
                for at in range(len(parts) - 1, 0, -1):
                    parts.insert(at, "-")
                return self._rejoin(tuple(filter(None, (opening, *parts, closing, *end))))
        words = self._rejoin(self._split(chunk, self._exceptions))
        return tuple(word.replace(JOINT, " ") for word in words) if JOINT in chunk else words

    def _split(self, chunk: str, exceptions: Mapping[str, Words]) -> Words:
        """The words of a chunk, without the exceptions that are found within one."""
        head: list[str] = []
        tail: list[str] = []
        size = 0
        while chunk and len(chunk) != size and not self._token.match(chunk) and chunk not in exceptions:
            size = len(chunk)
            found = self._prefix.match(chunk)
            prefix = found.group() if found else ""
            rest = chunk[len(prefix) :]
            if prefix and rest in exceptions:
                head.append(prefix)
                chunk = rest
                break
            # Only dots may be a suffix of any length; looking at all of it at each step would be quadratic.
            found = self._suffix.search(rest, max(0, min(len(rest) - MAX_SUFFIX, len(rest.rstrip(".")))))
            suffix = found.group() if found else ""
            if suffix and chunk[: -len(suffix)] in exceptions:
                tail.append(suffix)
                chunk = chunk[: -len(suffix)]
                break
            if prefix:
                head.append(prefix)
            if suffix:
                tail.append(suffix)
            chunk = rest[: len(rest) - len(suffix)]
        return *head, *self._core(chunk, exceptions), *reversed(tail)

    def _core(self, chunk: str, exceptions: Mapping[str, Words]) -> Words:
        """The words of what is left between prefixes and suffixes."""
        if chunk in exceptions or not chunk:
            return exceptions[chunk] if chunk else ()
        if self._token.match(chunk) or self._url.match(chunk):
            return (chunk,)
        words: list[str] = []
        start = 0
        for found in self._infix.finditer(chunk):
            if found.start() == 0:
                continue
            words += [chunk[start : found.start()], found.group()]
            start = found.end()
        return tuple(filter(None, (*words, chunk[start:])))

    def _rejoin(self, words: Words) -> Words:
        """`words` with the exceptions that several of them are put together, the longest and first ones first."""
        places = [
            (-len(parts), start)
            for start, word in enumerate(words)
            for parts in self._rejoined.get(word, ())
            if words[start : start + len(parts)] == parts
        ]
        if not places:
            return words
        found: dict[int, int] = {}
        seen: set[int] = set()
        for negative, start in sorted(places):
            end = start - negative
            if start not in seen and end - 1 not in seen:
                found[start] = end
            seen.update(range(start, end))
        joined: list[str] = []
        start = 0
        while start < len(words):
            end = found.get(start, start + 1)
            joined += self._exceptions["".join(words[start:end])] if start in found else words[start:end]
            start = end
        return tuple(joined)


@cache
def rules() -> dict[str, Any]:
    """The content of the file."""
    found: dict[str, Any] = json.loads(RULES.read_text(encoding="utf-8"))
    return found


def forms(word: str) -> set[str]:
    """How an exception of Indonesian may be written."""
    parts = word.split("-")
    return {
        word,
        word.title(),
        word.upper(),
        word.lower(),
        word[0].upper() + word[1:],
        "-".join(part.title() for part in parts),
        "-".join(part.upper() for part in parts),
    }


def _compiled(pattern: str) -> re.Pattern[str]:
    """With the classes of characters in place of their names."""
    return re.compile(re.sub("⟨(\\w+)⟩", lambda match: str(rules()["classes"][match.group(1)]), pattern))
