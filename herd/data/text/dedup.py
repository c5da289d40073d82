"""Exact and near duplicates among all documents of all sources, found before any of them is held out.

Near: MinHash (rensa) over character shingles, candidates from 32 bands of 4 rows, confirmed by the true Jaccard
similarity of their shingles. Of two such documents the later one in the order of hashes is dropped; so no held-out
document has a duplicate in train, and the order of reading does not matter. Two documents at the threshold of 0.7 miss
each other in all 32 bands with a probability of 2e-4, at 0.8 with 5e-8.

Texts wait in a temporary file. In memory are some 200 bytes for every document and a kilobyte for each that is kept.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from rensa import RMinHash, RMinHashLSH

from herd.config.cleaning import CleaningConfig
from herd.data.text.documents import Document
from herd.data.text.languages import script
from herd.data.text.report import Report
from herd.data.text.spool import Spool

SHINGLE = 8
"""Characters of a shingle: about a word and a half, and right for scripts without spaces too."""
NUM_PERM, NUM_BANDS = 128, 32
MINHASH_SEED = 4
REHYDRATION = {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1}
"""From how many duplicates on a document is trained on how often an epoch: FineWeb2's weights. Texts that are found a
thousand times are mostly notices."""


def shingles(text: str) -> set[str]:
    """All runs of SHINGLE characters, letter case and white space aside."""
    plain = " ".join(text.casefold().split())
    return {plain[start : start + SHINGLE] for start in range(max(len(plain) - SHINGLE + 1, 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    """The share of `a` and `b` that both have."""
    return len(a & b) / max(len(a | b), 1)


def repeats(cluster: int) -> int:
    """How often a document is trained on in an epoch that was kept of `cluster` duplicates."""
    sizes = sorted(REHYDRATION)
    return REHYDRATION[sizes[bisect_right(sizes, cluster) - 1]]


def deduplicate(
    documents: Iterable[Document], config: CleaningConfig, report: Report, *, folder: Path | None = None
) -> Iterator[Document]:
    """One document of every cluster of duplicates, in the order of their hashes, as soon as all have been read."""
    with Spool(folder) as spool:
        copies, chosen = _exact(documents, config, report, spool)
        for number in chosen:
            report.count("exact duplicates", spool[number])
        kept = _near(chosen, copies, config, report, spool) if config.near_duplicates else chosen
        for number in kept:
            document = spool[number]
            report.count("near duplicates", document)
            report.cluster_sizes[copies[number]] += 1
            report.by_language[f"{document.language}_{script(document.text)}"] += document.num_bytes
            report.by_source[document.source] += document.num_bytes
            yield replace(document, repeats=repeats(copies[number]) if config.rehydrate else 1)


def _exact(
    documents: Iterable[Document], config: CleaningConfig, report: Report, spool: Spool
) -> tuple[Counter[int], list[int]]:
    """Spool the documents. Returns how many each stands for, and the numbers of those kept in the order of hashes."""
    first: dict[tuple[str, int], int] = {}
    copies: Counter[int] = Counter()
    for document in documents:
        key = (document.id, 0 if config.exact_duplicates else len(spool))
        number = first.get(key)
        if number is None:
            first[key] = number = spool.append(document)
        else:
            report.drop("document: exact duplicate", document.text, document)
            twin = spool[number]
            if _origin(document) < _origin(twin):
                first[key] = spool.append(document)
                copies[first[key]] = copies.pop(number)
                number = first[key]
        copies[number] += 1
    return copies, [first[key] for key in sorted(first)]


def _origin(document: Document) -> tuple[str, str, str]:
    return document.language, document.source, document.page


def _near(numbers: list[int], copies: Counter[int], config: CleaningConfig, report: Report, spool: Spool) -> list[int]:
    """Those of `numbers` that are no near duplicate of an earlier one, whose copies grow by theirs."""
    index = RMinHashLSH(config.near_duplicates, NUM_PERM, NUM_BANDS)
    kept: list[int] = []
    for number in numbers:
        document = spool[number]
        own = shingles(document.text)
        sketch = RMinHash(NUM_PERM, MINHASH_SEED)
        sketch.update(list(own))
        candidates = (kept[key] for key in sorted(index.query(sketch)))
        similar = (one for one in candidates if jaccard(own, shingles(spool[one].text)) >= config.near_duplicates)
        twin = next(similar, None)
        if twin is not None:
            report.drop("document: near duplicate", document.text, document)
            copies[twin] += copies[number]
            continue
        index.insert(len(kept), sketch)
        kept.append(number)
    return kept
