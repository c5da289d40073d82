"""Exact and near duplicates among all documents of all sources, found before any of them is held out.

Near: MinHash (rensa) over hashed character shingles, candidates from 32 bands of 4 rows, confirmed by the true Jaccard
similarity of their shingles. Of two such documents the later one in the order of hashes is dropped; so no held-out
document has a duplicate in train, and the order of reading does not matter. Two documents at the threshold of 0.7 miss
each other in all 32 bands with a probability of 2e-4, at 0.8 with 5e-8.

Texts and the hashes of bands (256 bytes a document) wait in temporary files, written part by part. In memory are some
50 bytes for every document and a few hundred for each that has a candidate.
"""

import tempfile
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from herd.config.cleaning import CleaningConfig
from herd.data.text.documents import Document
from herd.data.text.languages import script
from herd.data.text.minhash import BATCH_CHARS, NUM_BANDS, band_hashes, jaccard, mix, shingles
from herd.data.text.report import Report
from herd.data.text.spool import Spool, SpoolWriter, save_array

REHYDRATION = {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1}
"""From how many duplicates on a document is trained on how often an epoch: FineWeb2's weights. Texts that are found a
thousand times are mostly notices."""

Numbers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def repeats(cluster: int) -> int:
    """How often a document is trained on in an epoch that was kept of `cluster` duplicates."""
    sizes = sorted(REHYDRATION)
    return REHYDRATION[sizes[bisect_right(sizes, cluster) - 1]]


def deduplicate(
    documents: Iterable[Document], config: CleaningConfig, report: Report, *, folder: Path | None = None
) -> Iterator[Document]:
    """One document of every cluster of duplicates, in the order of their hashes, as soon as all have been read.

    They wait in temporary files, in `folder` or the system's place for them.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as place:
        write_signed(documents, path := Path(place) / "documents", config)
        yield from deduplicate_parts([path], config, report)


def write_signed(documents: Iterable[Document], path: Path, config: CleaningConfig) -> None:
    """Write documents to `path` and, beside it, what is compared of each: its hash, its size, the hashes of bands."""
    ids: list[int] = []
    sizes: list[int] = []
    bands: list[Hashes] = []
    texts: list[str] = []
    chars = 0
    with SpoolWriter(path) as spool:
        for document in documents:
            spool.append(document)
            ids.append(int(document.id, 16))
            sizes.append(document.num_bytes)
            if config.near_duplicates:
                texts.append(document.text)
                chars += len(document.text)
                if chars >= BATCH_CHARS:
                    bands.append(band_hashes(texts))
                    texts, chars = [], 0
        if texts:
            bands.append(band_hashes(texts))
        _save_signature(path, "ids", np.array(ids, np.uint64))
        _save_signature(path, "sizes", np.array(sizes, np.uint64))
        _save_signature(path, "bands", np.concatenate([np.empty((NUM_BANDS, 0), np.uint64), *bands], axis=1))


def _signature_file(path: Path, name: str) -> Path:
    return path.with_name(f"{path.name}.{name}.npy")


def _save_signature(path: Path, name: str, array: Hashes) -> None:
    save_array(_signature_file(path, name), array)


def _signatures(paths: Sequence[Path], name: str, row: int | None = None) -> Hashes:
    """A signature of the documents of all parts; of a table of rows, one row."""
    parts = [np.load(_signature_file(path, name), mmap_mode="r") for path in paths]
    return np.concatenate([np.empty(0, np.uint64), *(part if row is None else part[row] for part in parts)])


def deduplicate_parts(paths: Sequence[Path], config: CleaningConfig, report: Report) -> Iterator[Document]:
    """The same of documents that `write_signed` has written."""
    spool = Spool(paths)
    ids = _signatures(paths, "ids")
    numbers = np.argsort(ids, kind="stable")
    copies: Counter[int] = Counter()
    """Duplicates of a document that is kept, itself not included."""
    if config.exact_duplicates:
        numbers = _drop_exact(numbers, ids[numbers], copies, report, spool)
    kept_bytes = int(_signatures(paths, "sizes")[numbers].sum())
    report.left["exact duplicates"] = Counter(documents=len(numbers), bytes=kept_bytes)
    del ids
    if config.near_duplicates:
        numbers = _drop_near(numbers, copies, config.near_duplicates, report, spool)
    for start in range(0, len(numbers), 4096):
        for number in numbers[start : start + 4096].tolist():
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


def _drop_near(numbers: Numbers, copies: Counter[int], threshold: float, report: Report, spool: Spool) -> Numbers:
    """Those of `numbers` that are no near duplicate of an earlier one, whose copies grow by theirs."""

    @lru_cache(maxsize=16)
    def shingles_of(number: int) -> set[str]:
        return shingles(spool[number].text)

    kept_in: dict[int, list[int]] = defaultdict(list)
    is_kept = np.ones(len(numbers), np.bool_)
    for place, buckets in _candidates(numbers, spool.paths):
        number = int(numbers[place])
        candidates = sorted(set(chain.from_iterable(kept_in[bucket] for bucket in buckets)))
        similar = (
            one for one in candidates if jaccard(shingles_of(number), shingles_of(int(numbers[one]))) >= threshold
        )
        twin = next(similar, None)
        if twin is None:
            for bucket in buckets:
                kept_in[bucket].append(place)
            continue
        report.drop("document: near duplicate", spool[number].text, spool[number])
        copies[int(numbers[twin])] += 1 + copies.pop(number, 0)
        is_kept[place] = False
    return numbers[is_kept]


def _candidates(numbers: Numbers, paths: Sequence[Path]) -> Iterator[tuple[int, list[int]]]:
    """The places of documents that share a band with another one, in order, each with the buckets that it is in."""
    known = np.empty(0, np.uint64)
    places_found: list[Numbers] = []
    buckets_found: list[Numbers] = []
    for row in range(NUM_BANDS):
        band = _signatures(paths, "bands", row)[numbers]
        order = np.argsort(band, kind="stable")
        band = band[order]
        is_same = band[1:] == band[:-1]
        shared = np.flatnonzero(np.concatenate((is_same, [False])) | np.concatenate(([False], is_same)))
        if not len(shared):
            continue
        places = order[shared]
        starts = np.flatnonzero(np.concatenate(([True], ~is_same))[shared])
        sizes = np.diff(starts, append=len(places))
        # Duplicates share most of their bands: a bucket of the same documents as an earlier one adds nothing.
        members = np.add.reduceat(mix(places.astype(np.uint64) + np.uint64(1)), starts)  # mix(0) is 0
        is_new = ~np.isin(members, known)
        numbered = np.cumsum(is_new) - 1 + len(known)
        known = np.concatenate((known, members[is_new]))
        chosen = np.repeat(is_new, sizes)
        places_found.append(places[chosen])
        buckets_found.append(np.repeat(numbered, sizes)[chosen])
    if not places_found:
        return
    all_places, all_buckets = np.concatenate(places_found), np.concatenate(buckets_found)
    order = np.argsort(all_places, kind="stable")
    all_places, all_buckets = all_places[order], all_buckets[order]
    starts = np.flatnonzero(np.concatenate(([True], all_places[1:] != all_places[:-1])))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(all_places)], strict=True):
        yield int(all_places[start]), all_buckets[start:end].tolist()
