"""Duplicates: found as brute force finds them, whatever their source, and weighed by their number."""

import random
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest

from herd.config import CleaningConfig
from herd.data.text.dedup import REHYDRATION, deduplicate, repeats
from herd.data.text.documents import Document
from herd.data.text.minhash import band_hashes, shingles
from herd.data.text.pipeline import clean
from herd.data.text.report import Report

THRESHOLD = 0.7
CONFIG = CleaningConfig(near_duplicates=THRESHOLD)
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


def vocabulary(rng: random.Random, size: int = 5000) -> list[str]:
    return ["".join(rng.choices(LETTERS, range(26, 0, -1), k=rng.randint(2, 10))) for _ in range(size)]


def variant(words: list[str], rng: random.Random, known: list[str], damage: float) -> list[str]:
    """A copy in which about a share of the words is replaced, removed or doubled."""
    copy: list[str] = []
    for word in words:
        kind = rng.random()
        if kind >= damage:
            copy.append(word)
        elif kind < damage / 2:
            copy.append(rng.choice(known))
        elif kind < damage * 3 / 4:
            copy += [word, word]
    return copy


def corpus(number: int, seed: int = 0) -> list[Document]:
    """Half of the documents are made from another one, with Jaccard similarities from 1 down to 0.3."""
    rng = random.Random(seed)
    known = vocabulary(rng)
    texts: list[list[str]] = []
    while len(texts) < number:
        if texts and rng.random() < 0.5:
            texts.append(variant(rng.choice(texts), rng, known, rng.choice([0, 0.01, 0.03, 0.05, 0.08, 0.12])))
        else:
            texts.append(rng.choices(known, k=rng.randint(25, 80)))
    return [
        Document(language="en", source=f"source {index % 3}", page=str(index), text=" ".join(words))
        for index, words in enumerate(texts)
    ]


def brute_force(documents: list[Document]) -> tuple[set[str], set[str]]:
    """The texts that are kept, and those that are dropped, when every document is compared with every other one."""
    ordered = sorted({document.text: document for document in documents}.values(), key=lambda one: one.id)
    numbers: dict[str, int] = {}
    rows = [
        np.array([numbers.setdefault(one, len(numbers)) for one in shingles(document.text)]) for document in ordered
    ]
    sizes = np.array([len(row) for row in rows])
    owners = np.repeat(np.arange(len(rows)), sizes)
    order = np.argsort(np.concatenate(rows), kind="stable")
    bounds = np.searchsorted(np.concatenate(rows)[order], np.arange(len(numbers) + 1))
    having = [owners[order[begin:end]] for begin, end in pairwise(bounds.tolist())]
    is_kept = np.zeros(len(rows), np.bool_)
    for place, row in enumerate(rows):
        common = np.bincount(np.concatenate([having[number] for number in row]), minlength=len(rows))
        jaccard = common / (sizes + sizes[place] - common)
        is_kept[place] = not (jaccard[:place][is_kept[:place]] >= THRESHOLD).any()
    kept = {document.text for document, keep in zip(ordered, is_kept, strict=True) if keep}
    return kept, {document.text for document in ordered} - kept


def check_against_brute_force(documents: list[Document]) -> None:
    report = Report()
    kept = {document.text for document in deduplicate(documents, CONFIG, report)}
    dropped = {document.text for document in documents} - kept
    _, expected = brute_force(documents)
    right = len(dropped & expected)
    assert len(expected) > len(documents) / 8
    assert right / len(expected) >= 0.98, "recall"
    assert right / len(dropped) >= 0.99, "precision"
    assert report.dropped.total() == len(documents) - len(kept)


def test_near_duplicates_are_those_that_brute_force_finds() -> None:
    check_against_brute_force(corpus(1500))


@pytest.mark.slow
def test_near_duplicates_among_twenty_thousand_documents_are_those_that_brute_force_finds() -> None:
    check_against_brute_force(corpus(20_000, seed=1))


def test_bands_agree_as_often_as_the_similarity_foretells() -> None:
    """32 bands of 4 rows: two documents of similarity s share each with probability s to the fourth."""
    rng = random.Random(3)
    known = vocabulary(rng)
    shared, expected = [], []
    for _ in range(60):
        words = rng.choices(known, k=80)
        one, other = " ".join(words), " ".join(variant(words, rng, known, 0.05))
        a, b = shingles(one), shingles(other)
        expected.append((len(a & b) / len(a | b)) ** 4)
        bands = band_hashes([one, "short", other])
        shared.append(float((bands[:, 0] == bands[:, 2]).mean()))
    assert abs(np.mean(shared) - np.mean(expected)) < 0.04
    assert band_hashes(["x"]).shape == (32, 1)


def test_buckets_that_differ_by_the_first_document_alone_are_not_one() -> None:
    """Of three near duplicates, some bands are shared by all of them and some by the last two."""
    rest = "aa  aaa aaa aaa aa  aaa aaa aaa aaa aaa aaa aaa aaa aaa a a aaa aaa aaa aaa"
    texts = [f"{first} {rest}" for first in ("aca", "aaa", "aaaa")]
    documents = [Document(language="en", source="a", page=text, text=text) for text in texts]
    assert [document.text for document in deduplicate(documents, CONFIG, Report())] == texts[:1]


@pytest.mark.parametrize("sources", [("a", "a", "a"), ("a", "b", "c")])
def test_duplicates_are_found_within_a_source_and_across_sources(sources: tuple[str, str, str]) -> None:
    rng = random.Random(2)
    known = vocabulary(rng)
    words = rng.choices(known, k=100)
    texts = [" ".join(words), " ".join(words), " ".join([*words, "end"])]
    documents = [
        Document(language="en", source=source, page=str(page), text=text)
        for page, (source, text) in enumerate(zip(sources, texts, strict=True))
    ]
    report = Report()
    (kept,) = deduplicate(documents, CONFIG, report)
    assert kept.repeats == 3 and report.cluster_sizes == {3: 1}
    assert report.dropped == {"document: exact duplicate": 1, "document: near duplicate": 1}
    assert report.left["exact duplicates"]["documents"] == 2 and report.left["near duplicates"]["documents"] == 1


def test_of_equal_documents_the_first_by_source_is_kept_whatever_the_order_of_reading() -> None:
    documents = [Document(language="en", source=source, page="1", text="the same text") for source in "cab"]
    for order in (documents, documents[::-1]):
        (kept,) = deduplicate(order, CONFIG, Report())
        assert kept.source == "a" and kept.repeats == 3


def test_repeats_are_the_weights_of_fineweb2() -> None:
    assert REHYDRATION == {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1}
    assert [repeats(size) for size in (1, 2, 3, 4, 5, 99, 100, 999, 1000, 10**6)] == [1, 2, 3, 3, 5, 5, 8, 8, 1, 1]
    off = replace(CONFIG, rehydrate=False)
    documents = [Document(language="en", source="a", page=str(page), text="the same text") for page in range(5)]
    assert [document.repeats for document in deduplicate(documents, off, Report())] == [1]


def test_duplicates_are_counted_after_the_filters_changed_them() -> None:
    """Documents that differ only in what is masked or normalised are duplicates."""
    off = {field.name: False for field in fields(CleaningConfig) if field.default is True}
    config = CleaningConfig(**{**off, "normalise": True, "exact_duplicates": True, "rehydrate": True}, min_bytes=0)
    texts = [f"Write to {name}@example.org, \r\nplease" for name in ("anna", "berta", "clara")]
    documents = [Document(language="en", source="a", page=text, text=text) for text in texts]
    kept, report = clean(documents, config)
    (document,) = kept
    assert (document.text, document.repeats, report.masked) == ("Write to [email],\nplease", 3, {"email": 3})
