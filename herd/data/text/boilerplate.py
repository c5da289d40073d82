"""Lines that many documents of one source and language have in common: menus, notices, licences.

A line is one where `boilerplate_documents` and `boilerplate_share` of the documents have it. Lines are counted by their
hashes, segment by segment of the documents, and the counts of all segments are added bucket by bucket: memory holds one
bucket and what is found, however many documents there are.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from herd.config.cleaning import CleaningConfig
from herd.data.text.documents import Document
from herd.data.text.spool import save_array

BUCKETS = 256
"""Hashes are counted by the value of their first byte."""
_COUNT = np.dtype([("hash", "<u8"), ("group", "<u2"), ("documents", "<u4")])

Hashes = npt.NDArray[np.uint64]
Group = tuple[str, str]
"""A source and a language."""


class LineCounter:
    """In how many documents of a segment each line is."""

    def __init__(self) -> None:
        self.documents: Counter[Group] = Counter()
        self._hashes: dict[Group, array[int]] = {}

    def add(self, document: Document) -> None:
        """Count the lines of a document, each once."""
        group = (document.source, document.language)
        self.documents[group] += 1
        own = self._hashes.setdefault(group, array("Q"))
        own.frombytes(hash_lines(set(document.text.split("\n"))).tobytes())

    def save(self, path: Path) -> None:
        """Write the counts in the order of hashes, and where each bucket begins."""
        parts = []
        for number, group in enumerate(self.documents):
            hashes, counts = np.unique(np.frombuffer(self._hashes[group], np.uint64), return_counts=True)
            part = np.empty(len(hashes), _COUNT)
            part["hash"], part["group"], part["documents"] = hashes, number, counts
            parts.append(part)
        whole = np.concatenate([np.empty(0, _COUNT), *parts])
        whole = whole[np.argsort(whole["hash"], kind="stable")]
        bounds = np.searchsorted(whole["hash"], np.arange(BUCKETS, dtype=np.uint64) << np.uint64(56))
        save_array(counts_file(path), whole)
        save_array(bounds_file(path), np.append(bounds, len(whole)))


def counts_file(path: Path) -> Path:
    """Where the counts of the segment `path` are."""
    return path.with_name(f"{path.name}.lines.npy")


def bounds_file(path: Path) -> Path:
    """Where the buckets of the segment `path` begin."""
    return path.with_name(f"{path.name}.buckets.npy")


def hash_lines(lines: Iterable[str]) -> Hashes:
    """A hash of each line, the same in every process."""
    return np.frombuffer(b"".join(blake2b(line.encode(), digest_size=8).digest() for line in lines), "<u8")


class Boilerplate:
    """The lines that were found, as sorted hashes by group."""

    def __init__(self, lines: Mapping[Group, Hashes]) -> None:
        self._lines = {group: hashes for group, hashes in lines.items() if len(hashes)}

    def of(self, document: Document) -> set[str]:
        """The lines of a document that are boilerplate."""
        known = self._lines.get((document.source, document.language))
        if known is None:
            return set()
        lines = list(set(document.text.split("\n")))
        hashes = hash_lines(lines)
        places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        return {lines[index] for index in np.flatnonzero(known[places] == hashes).tolist()}


def find_boilerplate(segments: Sequence[tuple[Path, Mapping[Group, int]]], config: CleaningConfig) -> Boilerplate:
    """What is boilerplate in all segments, from their saved counts and the documents of each group in them."""
    if not config.boilerplate_documents:
        return Boilerplate({})
    documents: Counter[Group] = Counter()
    for _, own in segments:
        documents.update(own)
    groups = {group: number for number, group in enumerate(sorted(documents))}
    least = np.array(
        [max(config.boilerplate_documents, config.boilerplate_share * documents[group]) for group in groups]
    )
    found: list[list[Hashes]] = [[] for _ in groups]
    bounds = [np.load(bounds_file(path)) for path, _ in segments]
    numbers = [np.array([groups[group] for group in own], np.uint16) for _, own in segments]
    for bucket in range(BUCKETS):
        parts = []
        for (path, _), place, number in zip(segments, bounds, numbers, strict=True):
            if place[bucket] < place[bucket + 1]:
                part = np.array(np.load(counts_file(path), mmap_mode="r")[place[bucket] : place[bucket + 1]])
                part["group"] = number[part["group"]]
                parts.append(part)
        if not parts:
            continue
        counts = np.concatenate(parts)
        counts = counts[np.lexsort((counts["hash"], counts["group"]))]
        is_first = np.ones(len(counts), np.bool_)
        is_first[1:] = (counts["hash"][1:] != counts["hash"][:-1]) | (counts["group"][1:] != counts["group"][:-1])
        starts = np.flatnonzero(is_first)
        sums = np.add.reduceat(counts["documents"].astype(np.int64), starts)
        frequent = counts[starts[sums >= least[counts["group"][starts]]]]
        for number in np.unique(frequent["group"]).tolist():
            found[number].append(frequent["hash"][frequent["group"] == number])
    return Boilerplate({group: np.concatenate(found[number]) for group, number in groups.items() if found[number]})
