"""No twin of a held-out document is trained on, whatever the documents; and splits do not depend on order."""

from collections import Counter
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from herd.config import CleaningConfig
from herd.data.text.dedup import deduplicate
from herd.data.text.documents import Document, digest
from herd.data.text.minhash import jaccard, shingles
from herd.data.text.report import Report
from herd.data.text.splits import held_out, held_out_pages

THRESHOLD = 0.7

words = st.text(alphabet="abcdefghijklmnop あいうえおかきくけこ", min_size=3, max_size=9)
bases = st.lists(st.lists(words, min_size=20, max_size=60), min_size=1, max_size=5)
edits = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 59), words), max_size=12)


def document(text: str, page: str = "", language: str = "en") -> Document:
    return Document(language=language, source="made up", page=page or text, text=text)


def kept_of(documents: list[Document], report: Report | None = None) -> list[Document]:
    config = CleaningConfig(near_duplicates=THRESHOLD)
    return list(deduplicate(documents, config, Report() if report is None else report))


def splits_of(documents: list[Document], *, share: float, least_bytes: int) -> dict[str, str]:
    """`train` or `heldout` for every document's id."""
    sizes = [(one.language, digest(one.page), one.num_bytes) for one in documents]
    held = held_out_pages(sizes, share=share, least_bytes=least_bytes)
    return {one.id: "heldout" if (one.language, digest(one.page)) in held else "train" for one in documents}


@st.composite
def with_twins(draw: st.DrawFn) -> list[Document]:
    """A few texts, and copies of them with a word changed, in any order."""
    originals = draw(bases)
    texts = [" ".join(base) for base in originals]
    for which, place, word in draw(edits):
        changed = list(originals[which % len(originals)])
        changed[place % len(changed)] = word
        texts.append(" ".join(changed))
    return [document(text) for text in draw(st.permutations(texts))]


@settings(max_examples=60, deadline=None)
@given(with_twins())
def test_no_near_duplicate_is_ever_on_the_other_side_of_the_split(documents: list[Document]) -> None:
    kept = kept_of(documents)
    splits = splits_of(kept, share=0.2, least_bytes=200)
    for one, other in combinations(kept, 2):
        # At the threshold itself the bands miss two in ten thousand; from 0.8 one in twenty million.
        if splits[one.id] != splits[other.id]:
            assert jaccard(shingles(one.text), shingles(other.text)) < 0.8


@settings(max_examples=40, deadline=None)
@given(with_twins(), st.randoms())
def test_what_is_kept_does_not_depend_on_the_order(documents: list[Document], random: object) -> None:
    shuffled = list(documents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    kept, again = kept_of(documents), kept_of(shuffled)
    assert [one.id for one in kept] == [one.id for one in again]
    assert splits_of(kept, share=0.1, least_bytes=0) == splits_of(again, share=0.1, least_bytes=0)


@settings(max_examples=40, deadline=None)
@given(with_twins())
def test_only_twins_are_dropped_and_each_is_counted(documents: list[Document]) -> None:
    report = Report()
    kept = kept_of(documents, report)
    assert len(kept) + report.dropped.total() == len(documents)
    assert sum(size * number for size, number in report.cluster_sizes.items()) == len(documents)
    for one in documents:
        assert any(jaccard(shingles(one.text), shingles(other.text)) >= THRESHOLD for other in kept)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(100, 900)), min_size=5, max_size=60), st.floats(0.01, 0.5))
def test_the_documents_of_a_page_stay_together_and_a_fifth_is_the_most_wanted(
    parts: list[tuple[int, int]], share: float
) -> None:
    documents = [document("x" * size + str(index), f"page {page}") for index, (page, size) in enumerate(parts)]
    splits = splits_of(documents, share=share, least_bytes=500)
    sides: dict[str, set[str]] = {}
    held: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for one in documents:
        sizes[one.page] += len(one.text)
        sides.setdefault(one.page, set()).add(splits[one.id])
        held[one.page] += len(one.text) * (splits[one.id] == "heldout")
    assert all(len(side) == 1 for side in sides.values())
    total = sum(len(one.text) for one in documents)
    wanted = min(max(share * total, 500), total / 5)
    assert sum(held.values()) <= wanted + max(held.values())
    assert sum(held.values()) >= wanted or max(sizes.values()) > total / 2  # which is never held out
    assert "train" in splits.values()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["en", "de"]), st.integers(0, 400), st.sampled_from([0, 1, 50, 999, 9000])),
        max_size=40,
    ),
    st.floats(0.01, 0.5),
    st.sampled_from([0, 1000]),
)
def test_the_pages_held_out_are_those_of_a_list_of_all(
    parts: list[tuple[str, int, int]], share: float, least_bytes: int
) -> None:
    documents = [(language, digest(str(page)), size) for language, page, size in parts]
    sizes: Counter[tuple[str, str]] = Counter()
    total: Counter[str] = Counter()
    for language, page, size in documents:
        sizes[language, page] += size
        total[language] += size
    held: Counter[str] = Counter()
    expected = set()
    for language, page in sorted(sizes, key=lambda key: key[1]):
        wanted = min(max(share * total[language], least_bytes), total[language] / 5)
        if held[language] < wanted and sizes[language, page] <= total[language] / 2:
            held[language] += sizes[language, page]
            expected.add((language, page))
    found = held_out_pages(documents, share=share, least_bytes=least_bytes)
    assert {place for place in sizes if place in found} == expected


def test_about_the_share_asked_for_is_held_out() -> None:
    for share in (0.05, 0.15, 0.5):
        out = sum(held_out("emoji", str(index), share=share) for index in range(4_000))
        assert abs(out / 4_000 - share) < 0.03


@given(st.text(), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_out_all_that_a_smaller_does(kind: str, name: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert held_out(kind, name, share=large) or not held_out(kind, name, share=small)
