"""What is held out, decided by hashes alone, so that it is the same in every run and on every machine."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from herd.data.text.documents import Document, digest


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


def split_documents(documents: Sequence[Document], *, share: float, least_bytes: int) -> dict[str, str]:
    """`train` or `heldout` for every document's id, by the hash of its page.

    In each language pages are held out, in the order of their hashes, until `share` of its bytes is reached, or
    `least_bytes` where that is more; but never more than a fifth.
    """
    total: Counter[str] = Counter()
    pages: dict[tuple[str, str], list[Document]] = {}
    for document in documents:
        total[document.language] += len(document.text.encode())
        pages.setdefault((document.language, document.page), []).append(document)
    held: Counter[str] = Counter()
    places: dict[str, str] = {}
    for language, page in sorted(pages, key=lambda key: digest(key[1])):
        members = pages[language, page]
        wanted = min(max(share * total[language], least_bytes), total[language] / 5)
        place = "heldout" if held[language] < wanted else "train"
        if place == "heldout":
            held[language] += sum(len(document.text.encode()) for document in members)
        places.update((document.id, place) for document in members)
    return places
