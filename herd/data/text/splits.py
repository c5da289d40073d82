"""What is held out, decided by hashes alone, so that it is the same in every run and on every machine."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_BIN_DIGITS = 3
"""Digits of a digest by which sizes of pages are added."""


def held_out(*place: str, share: float) -> bool:
    """Whether the thing at `place` is one of the `share` that is never trained on."""
    value = hashlib.sha256("\0".join(place).encode()).digest()[:8]
    return int.from_bytes(value) < share * 2**64


def groups(spellings: Mapping[str, set[str]]) -> dict[str, str]:
    """Things that share a spelling of their names, directly or by way of others: each with the first of its group."""
    first = {thing: thing for thing in spellings}
    owner: dict[str, str] = {}

    def root(thing: str) -> str:
        while first[thing] != thing:
            thing = first[thing]
        return thing

    for thing, own in spellings.items():
        for spelling in own:
            one, other = sorted((root(thing), root(owner.setdefault(spelling, thing))))
            first[other] = one
    return {thing: root(thing) for thing in spellings}


@dataclass(frozen=True, kw_only=True)
class HeldOutPages:
    """The pages that are held out."""

    last: Mapping[str, str]
    """By language: the last page that is held out, in the order of their hashes."""
    large: frozenset[tuple[str, str]]
    """Pages that are more than half of their language."""

    def __contains__(self, place: tuple[str, str]) -> bool:
        language, page = place
        return page <= self.last.get(language, "") and place not in self.large


def held_out_pages(documents: Iterable[tuple[str, str, int]], *, share: float, least_bytes: int) -> HeldOutPages:
    """The pages that are held out, each a language and the digest of a name, from the language, page and bytes of every
    document. All documents of a page have the same split.

    In each language pages are held out, in the order of their hashes, until `share` of its bytes is reached, or
    `least_bytes` where that is more, or a fifth where that is less; the last page is held out whole, so that a language
    of a few pages may have more than a fifth held out. None that is more than half of the language is.

    `documents` is read three times, so that memory holds a few sums for each language and no list of pages.
    """
    total: Counter[str] = Counter()
    bins: dict[str, list[int]] = {}
    votes: dict[str, tuple[str, int]] = {}
    for language, page, size in documents:
        total[language] += size
        bins.setdefault(language, [0] * 16**_BIN_DIGITS)[int(page[:_BIN_DIGITS], 16)] += size
        leader, lead = votes.get(language, (page, 0))  # a majority outweighs all others (Boyer and Moore)
        votes[language] = (leader, lead + size) if page == leader else (leader, lead - size)
        if votes[language][1] < 0:
            votes[language] = (page, size - lead)
    leading: Counter[str] = Counter()
    for language, page, size in documents:
        if page == votes[language][0]:
            leading[language] += size
    large = frozenset((language, votes[language][0]) for language in total if leading[language] > total[language] / 2)
    wanted = {language: min(max(share * size, least_bytes), size / 5) for language, size in total.items()}
    last: dict[str, str] = {}
    edge: dict[str, int] = {}
    held: Counter[str] = Counter()
    for language, page in large:
        bins[language][int(page[:_BIN_DIGITS], 16)] -= leading[language]
    for language, sizes in bins.items():
        for number, size in enumerate(sizes):
            if held[language] + size >= wanted[language]:
                edge[language] = number
                break
            held[language] += size
        else:
            last[language] = "g"  # behind every digest
    inside: Counter[tuple[str, str]] = Counter()
    for language, page, size in documents:
        if edge.get(language) == int(page[:_BIN_DIGITS], 16) and (language, page) not in large:
            inside[language, page] += size
    for language, page in sorted(inside):
        if held[language] < wanted[language]:
            held[language] += inside[language, page]
            last[language] = page
    for language, number in edge.items():
        if language not in last:  # all before this bin
            last[language] = f"{number:0{_BIN_DIGITS}x}"
    return HeldOutPages(last=last, large=large)
