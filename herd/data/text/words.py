"""The words of a text as datatrove counts them, which the thresholds of the filters were found with.

datatrove uses spaCy's tokenizers. They work on chunks, what is between white space: take off prefixes and suffixes,
split at infixes, and have a list of exceptions for each language. `word_rules.json` has spaCy's regular expressions and
exceptions, and `SpacyRules` follows them, so that the words are the same without spaCy. A chunk is split once and
remembered; most of a text is looked up.

Hindi is split at punctuation, as by datatrove's indic-nlp-library. Where datatrove needs a dictionary or a model (jieba
for Chinese, SudachiPy for Japanese, pyvi for Vietnamese, pythainlp for Thai), each letter of a script without spaces is
a word, and each syllable of Vietnamese. Any other language has spaCy's rules for languages without rules of their own.
"""

import json
import math
import re
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from herd.data.text.thresholds import thresholds

RULES = Path(__file__).with_name("word_rules.json")
MARKS = r"\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963"
"""Combining marks (Latin, Arabic, Devanagari): no letters to `re`, but parts of words."""
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Letters of scripts without spaces between words (Thai, kana, Han)."""
JOINT = "\ue000"
"""In place of a space in an exception that is several chunks."""
OTHERS = "xx"
"""The rules of languages without rules of their own."""
MAX_CHUNK = 1_000
"""Characters of a chunk that spaCy's rules are followed for, as they take quadratic time."""
MAX_SUFFIX = 10
"""Characters of a suffix, unless it is dots."""
MAX_REMEMBERED = 200_000
"""Chunks that are remembered, the first ones, as frequent ones come early; of words twice as many, then a vocabulary
starts anew. Some 60 MB a language."""

_LETTERS = re.compile(
    rf"(?:[^\W\d_{UNSPACED}]\.)+"  # initials and abbreviations: U.S.
    r"|\d+(?:[.,:/–-]\d+)+"  # numbers and dates
    rf"|[^\W_{UNSPACED}][^\W{UNSPACED}]*(?:[{MARKS}\u200c\u200d]+[^\W{UNSPACED}]*)*"
    rf"|[{UNSPACED}]|\.\.\.+|[^\w\s]|_"
)
_LETTER_RUN = re.compile(r"[^\W\d_]+")
_LATIN_OR_CYRILLIC = "[A-Za-zÀ-ÖØ-öø-ÿа-яА-Я]+"
_COMMON = re.compile(rf'(["(“]?)({_LATIN_OR_CYRILLIC}(?:-{_LATIN_OR_CYRILLIC})*)([")”]?)([,;:!?]|\.[")”]?)?')
"""Most of what is not letters alone: a word, or several with hyphens, in quotes or brackets, before a mark."""
_INDIC_MARK = re.compile(f"([{re.escape(string.punctuation.replace(chr(92), ''))}।॥])")  # no backslash
_INDIC_NUMBER = re.compile(r"(?:[0-9]+ [,.:/] )+[0-9]+")

Words = tuple[str, ...]
Value = TypeVar("Value")


class Splitter(Protocol):
    """Splits a text into chunks, and a chunk, whatever is around it, into words."""

    def chunks(self, text: str) -> Sequence[str]: ...

    def split(self, chunk: str) -> Words: ...


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
            return tuple(_LETTERS.findall(chunk))
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


class IndicMarks:
    """Hindi at its punctuation marks (indic-nlp-library, trivial_tokenize); numbers and dates stay together."""

    def chunks(self, text: str) -> Sequence[str]:
        text = re.sub(" +", " ", _INDIC_MARK.sub(r" \1 ", text.replace("\t", " ")))
        text = _INDIC_NUMBER.sub(lambda match: match.group().replace(" ", ""), text)
        return [word for one in text.split(" ") if (word := one.strip())]

    def split(self, chunk: str) -> Words:
        return (chunk,)


class Letters:
    """Each letter of a script without spaces, words of others, and marks."""

    def chunks(self, text: str) -> Sequence[str]:
        return _LETTERS.findall(text)

    def split(self, chunk: str) -> Words:
        return (chunk,)


@cache
def splitter(language: str) -> Splitter:
    """That of a language, ISO 639-1."""
    if thresholds(language).tokens_per_word > 1:
        return Letters()
    if language == "hi":
        return IndicMarks()
    return SpacyRules(language) if language in rules()["languages"] or language == OTHERS else splitter(OTHERS)


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


class Vocabulary:
    """The words of a language by number, what the filters ask of them, and the numbers of the words of each chunk."""

    def __init__(self, splitter: Splitter) -> None:
        self._splitter = splitter
        self._punctuation = frozenset(rules()["punctuation"])
        self._numbers = _Remembered(self._add, math.inf)
        self._chunks = _Remembered(self._split, MAX_REMEMBERED)
        self.words: list[str] = []
        self.lengths = np.zeros(0, np.int64)
        """Characters of each word; the arrays are longer than `words`."""
        self.is_word = np.zeros(0, np.bool_)
        """Whether it is more than punctuation."""
        self.has_letter = np.zeros(0, np.bool_)
        self.has_alphanumeric = np.zeros(0, np.bool_)

    @property
    def is_full(self) -> bool:
        """Whether a new one should take its place."""
        return len(self.words) >= 2 * MAX_REMEMBERED

    def read(self, text: str) -> npt.NDArray[np.int64]:
        """The numbers of the words of a text."""
        chunks = self._splitter.chunks(text)
        return np.fromiter(chain.from_iterable(map(self._chunks.__getitem__, chunks)), np.int64)

    def find(self, words: Collection[str]) -> set[int]:
        """The numbers of those of `words` that have been read."""
        return {self._numbers[word] for word in words if word in self._numbers}

    def _split(self, chunk: str) -> tuple[int, ...]:
        return tuple(map(self._numbers.__getitem__, self._splitter.split(chunk)))

    def _add(self, word: str) -> int:
        number = len(self.words)
        if number == len(self.lengths):
            for name in ("lengths", "is_word", "has_letter", "has_alphanumeric"):
                setattr(self, name, np.resize(getattr(self, name), max(1024, 2 * number)))
        is_alphabetic = word.isalpha()
        self.lengths[number] = len(word)
        self.is_word[number] = is_alphabetic or not self._punctuation.issuperset(word)
        self.has_letter[number] = is_alphabetic or any(map(str.isalpha, word))
        self.has_alphanumeric[number] = is_alphabetic or any(map(str.isalnum, word))
        self.words.append(word)
        return number


class _Remembered(dict[str, Value]):
    """What a function of a string returns, computed once for each of the first strings."""

    def __init__(self, compute: Callable[[str], Value], most: float) -> None:
        super().__init__()
        self._compute, self._most = compute, most

    def __missing__(self, key: str) -> Value:
        value = self._compute(key)
        if len(self) < self._most:
            self[key] = value
        return value


_VOCABULARIES: dict[Splitter, Vocabulary] = {}


def vocabulary(language: str) -> Vocabulary:
    """That of a language, which remembers what was read before."""
    own = splitter(language)
    found = _VOCABULARIES.get(own)
    if found is None or found.is_full:
        found = _VOCABULARIES[own] = Vocabulary(own)
    return found


def forget_words() -> None:
    """Start all vocabularies anew."""
    _VOCABULARIES.clear()
