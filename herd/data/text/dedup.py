"""Exact and near duplicates among all documents of all sources, found before any of them is held out.

Near: MinHash (rensa) over hashed character shingles, candidates from 32 bands of 4 rows, confirmed by the true Jaccard
similarity of their shingles. Of two such documents the later one in the order of hashes is dropped; so no held-out
document has a duplicate in train, and the order of reading does not matter. Two documents at the threshold of 0.7 miss
each other in all 32 bands with a probability of 2e-4, at 0.8 with 5e-8.

Texts and the hashes of bands (256 bytes a document) wait in temporary files. In memory are 30 bytes for every document
and some hundred for each that has a candidate.
"""

import os
import tempfile
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from herd.config.cleaning import CleaningConfig
from herd.core.files import naming_full_disk
from herd.data.text.documents import Document
from herd.data.text.languages import script
from herd.data.text.passage import hash_runs
from herd.data.text.report import Report
from herd.data.text.spool import Spool

SHINGLE = 8
"""Characters of a shingle: about a word and a half, and right for scripts without spaces too."""
NUM_PERM, NUM_BANDS = 128, 32
MINHASH_SEED = 4
BATCH_CHARS = 1_000_000
"""Characters whose shingles are hashed at a time."""
REHYDRATION = {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1}
"""From how many duplicates on a document is trained on how often an epoch: FineWeb2's weights. Texts that are found a
thousand times are mostly notices."""

Numbers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def shingles(text: str) -> set[str]:
    """All runs of SHINGLE characters, letter case and white space aside."""
    plain = _plain(text)
    return {plain[start : start + SHINGLE] for start in range(max(len(plain) - SHINGLE + 1, 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    """The share of `a` and `b` that both have."""
    common = len(a & b)
    return common / max(len(a) + len(b) - common, 1)


def repeats(cluster: int) -> int:
    """How often a document is trained on in an epoch that was kept of `cluster` duplicates."""
    sizes = sorted(REHYDRATION)
    return REHYDRATION[sizes[bisect_right(sizes, cluster) - 1]]


def deduplicate(
    documents: Iterable[Document], config: CleaningConfig, report: Report, *, folder: Path | None = None
) -> Iterator[Document]:
    """One document of every cluster of duplicates, in the order of their hashes, as soon as all have been read."""
    with Spool(folder) as spool:
        ids, sizes = array("Q"), array("Q")
        for document in documents:
            ids.append(int(document.id, 16))
            sizes.append(document.num_bytes)
            spool.append(document)
        numbers = np.argsort(np.frombuffer(ids, np.uint64), kind="stable")
        copies: Counter[int] = Counter()
        """Duplicates of a document that is kept, itself not included."""
        if config.exact_duplicates:
            numbers = _drop_exact(numbers, np.frombuffer(ids, np.uint64)[numbers], copies, report, spool)
        report.left["exact duplicates"] = Counter(documents=len(numbers), bytes=int(np.array(sizes)[numbers].sum()))
        if config.near_duplicates:
            numbers = _drop_near(numbers, copies, config.near_duplicates, report, spool, folder)
        for number in numbers.tolist():
            document = spool[number]
            cluster = 1 + copies[number]
            report.count("near duplicates", document)
            report.cluster_sizes[cluster] += 1
            report.by_language[f"{document.language}_{script(document.text)}"] += document.num_bytes
            report.keep(document)
            yield replace(document, repeats=repeats(cluster) if config.rehydrate else 1)


def _drop_exact(numbers: Numbers, ids: Hashes, copies: Counter[int], report: Report, spool: Spool) -> Numbers:
    """One number for each of the sorted `ids`: that of the document whose origin is the first one."""
    is_first = np.ones(len(ids), np.bool_)
    np.not_equal(ids[1:], ids[:-1], out=is_first[1:])
    starts = np.flatnonzero(is_first)
    sizes = np.diff(starts, append=len(ids))
    chosen = numbers[starts]
    for place in np.flatnonzero(sizes > 1).tolist():
        group = numbers[starts[place] : starts[place] + sizes[place]].tolist()
        twins = {number: spool[number] for number in group}
        kept = min(group, key=lambda number: (_origin(twins[number]), number))
        for number in group:
            if number != kept:
                report.drop("document: exact duplicate", twins[number].text, twins[number])
        chosen[place] = kept
        copies[kept] = len(group) - 1
    return chosen


def _origin(document: Document) -> tuple[str, str, str]:
    return document.language, document.source, document.page


def _drop_near(
    numbers: Numbers, copies: Counter[int], threshold: float, report: Report, spool: Spool, folder: Path | None
) -> Numbers:
    """Those of `numbers` that are no near duplicate of an earlier one, whose copies grow by theirs."""

    @lru_cache(maxsize=16)
    def shingles_of(number: int) -> set[str]:
        return shingles(spool[number].text)

    buckets = _candidates(numbers, spool, folder)
    kept_in: dict[int, list[int]] = defaultdict(list)
    is_kept = np.ones(len(numbers), np.bool_)
    for place in sorted(buckets):
        number = int(numbers[place])
        candidates = sorted(set(chain.from_iterable(kept_in[bucket] for bucket in buckets[place])))
        similar = (
            one for one in candidates if jaccard(shingles_of(number), shingles_of(int(numbers[one]))) >= threshold
        )
        twin = next(similar, None)
        if twin is None:
            for bucket in buckets[place]:
                kept_in[bucket].append(place)
            continue
        report.drop("document: near duplicate", spool[number].text, spool[number])
        copies[int(numbers[twin])] += 1 + copies.pop(number, 0)
        is_kept[place] = False
    return numbers[is_kept]


def _candidates(numbers: Numbers, spool: Spool, folder: Path | None) -> dict[int, list[int]]:
    """The places of documents that share a band with another one, each with the buckets that it is in."""
    buckets: dict[int, list[int]] = defaultdict(list)
    num_buckets = 0
    with _temporary_array((NUM_BANDS, len(numbers)), folder) as bands:
        for start, texts in _batches(numbers, spool):
            bands[:, start : start + len(texts)] = band_hashes(texts)
        for band in bands:
            order = np.argsort(band, kind="stable")
            ordered = band[order]
            is_same = ordered[1:] == ordered[:-1]
            in_bucket = np.flatnonzero(np.concatenate((is_same, [False])) | np.concatenate(([False], is_same)))
            new = np.concatenate(([True], ~is_same))[in_bucket]
            for place, bucket in zip(order[in_bucket].tolist(), (num_buckets + np.cumsum(new)).tolist(), strict=True):
                buckets[place].append(bucket)
            num_buckets += int(new.sum())
    return buckets


def band_hashes(texts: Sequence[str]) -> Hashes:
    """A hash of each band of each text's MinHash."""
    plain = [_plain(text).ljust(SHINGLE) for text in texts]
    ends = np.cumsum([len(text) for text in plain])
    codes = np.frombuffer("".join(plain).encode("utf-32-le", "surrogatepass"), np.uint32)
    hashes = hash_runs(codes.astype(np.uint64), SHINGLE)
    is_within = np.ones(len(hashes), np.bool_)
    is_within[(ends[:-1, None] - np.arange(1, SHINGLE)).ravel()] = False  # runs of two texts
    offsets = np.concatenate(([0], ends - (SHINGLE - 1) * np.arange(1, len(ends) + 1)))
    tokens = _mix(hashes[is_within])
    digests = RMinHash.digest_matrix_from_flat_token_hashes(tokens, offsets.astype(np.uint64), NUM_PERM, MINHASH_SEED)
    rows = np.array(digests.to_rows(), np.uint64).reshape(len(texts), NUM_BANDS, NUM_PERM // NUM_BANDS)
    return _mix(hash_runs(rows.reshape(-1), NUM_PERM // NUM_BANDS)[:: NUM_PERM // NUM_BANDS]).reshape(len(texts), -1).T


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _mix(hashes: Hashes) -> Hashes:
    """The hashes with each bit depending on all (the end of SplitMix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _batches(numbers: Numbers, spool: Spool) -> Iterator[tuple[int, list[str]]]:
    """The texts with the place of the first of them."""
    texts: list[str] = []
    size = start = 0
    for place, number in enumerate(numbers.tolist()):
        texts.append(spool[number].text)
        size += len(texts[-1])
        if size >= BATCH_CHARS or place == len(numbers) - 1:
            yield start, texts
            texts, size, start = [], 0, place + 1


@contextmanager
def _temporary_array(shape: tuple[int, int], folder: Path | None) -> Iterator[Hashes]:
    """An array in a file that is removed."""
    place = folder or Path(tempfile.gettempdir())
    with tempfile.TemporaryFile(dir=place) as file:
        with naming_full_disk(place):
            os.posix_fallocate(file.fileno(), 0, max(8 * shape[0] * shape[1], 1))
        yield np.memmap(file, np.uint64, "r+", shape=shape) if shape[1] else np.empty(shape, np.uint64)
