"""What is held out, decided by hashes alone, so that it is the same in every run and on every machine."""

import hashlib
from collections import Counter
from collections.abc import Mapping


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


def held_out_pages(
    sizes: Mapping[tuple[str, str], int], *, share: float, least_bytes: int
) -> frozenset[tuple[str, str]]:
    """The pages, each a language and the digest of a name, that are held out, from the bytes of all: all documents of a
    page have the same split.

    In each language pages are held out, in the order of their hashes, until `share` of its bytes is reached, or
    `least_bytes` where that is more; but never more than a fifth, and none that is more than half of the language.
    """
    total: Counter[str] = Counter()
    for (language, _), size in sizes.items():
        total[language] += size
    held: Counter[str] = Counter()
    found = set()
    for language, page in sorted(sizes, key=lambda key: key[1]):
        size = sizes[language, page]
        wanted = min(max(share * total[language], least_bytes), total[language] / 5)
        if held[language] < wanted and size <= total[language] / 2:
            held[language] += size
            found.add((language, page))
    return frozenset(found)
