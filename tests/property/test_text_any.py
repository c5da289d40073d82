"""The cleaning of any text whatever: it never fails, loses no count, takes no quadratic time, and is done once."""

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.config import CleaningConfig
from herd.data.text.contamination import words_of
from herd.data.text.documents import AUTO, Document
from herd.data.text.languages import script
from herd.data.text.lines import LINE_FILTERS, without_citations
from herd.data.text.minhash import shingles
from herd.data.text.normalise import is_mojibake, normalise_lines
from herd.data.text.passage import Passage, symbol_share
from herd.data.text.pii import mask
from herd.data.text.pipeline import clean
from herd.data.text.quality import DOCUMENT_FILTERS
from herd.data.text.thresholds import BY_LANGUAGE, thresholds

ALL_ON = replace(
    CleaningConfig(),
    **{name: True for name, value in vars(CleaningConfig()).items() if value is False},
    boilerplate_documents=2,
)

any_text = st.text(st.characters(exclude_categories=())) | st.text(
    st.sampled_from("aA1 .\n\r\t-+@#_[]{}()…•'’\x00\u2028\ud800\ufffd\u0301\u200dé中あ한ไ३٣ʰ𝔸🎉"), max_size=300
)
documents = st.builds(
    Document,
    language=st.sampled_from([*BY_LANGUAGE, "xx", AUTO]),
    source=st.sampled_from("ab"),
    page=st.sampled_from("xyz"),
    text=any_text,
)


@settings(max_examples=100)
@given(st.lists(documents, max_size=6), st.sampled_from([ALL_ON, CleaningConfig()]))
def test_any_text_is_kept_or_dropped_and_counted(given_documents: list[Document], config: CleaningConfig) -> None:
    item = "one two three four five six seven eight \ud800"
    kept, report = clean(given_documents, replace(config, max_bytes=0), evaluation={"exam": [item, ""]})
    number = len(list(kept))
    dropped = sum(count for reason, count in report.dropped.items() if reason.startswith("document: "))
    assert number + dropped == len(given_documents)


@given(any_text)
def test_normalising_and_masking_twice_changes_nothing_more(text: str) -> None:
    once = normalise_lines(text)
    assert normalise_lines(once) == once
    masked, _ = mask(text)
    assert mask(masked) == (masked, {})


UNITS = [
    "a", " ", "\n", "1", "1 ", "1-", "+1", "a@", "@", "a.", ".", "[", "#", "(1", "tel", "tel 1", "DE89 ", "A1", "sk-",
    "eyJ", "-----BEGIN PRIVATE KEY-----\n", "_", "\u0301", "\u200d", "中", "a\u0301", " \n", "a ", "\r", "1.", "…", "é",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_no_text_takes_quadratic_time(unit: str) -> None:
    """A quadratic filter would take minutes for so much of the same."""
    text = unit * (100_000 // len(unit)) + "x"
    passage = Passage(text, "en")
    begin = time.thread_time()
    list(clean([Document(language="en", source="s", page="p", text=text)], ALL_ON)[0])
    for line_filter in LINE_FILTERS.values():
        line_filter(text, "en")
    for document_filter in DOCUMENT_FILTERS.values():
        document_filter(passage, thresholds("en"))
    for function in (normalise_lines, is_mojibake, symbol_share, without_citations, mask, words_of, shingles, script):
        function(text)
    assert time.thread_time() - begin < 3
