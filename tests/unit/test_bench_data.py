"""The bench of a data folder: its rows, and that it stops where the two sides do not decide alike."""

import random
from dataclasses import replace

import data_world
import pytest
from test_text_cleaning import LINES

from herd.bench import cleaning, tokens
from herd.bench.data import data
from herd.data.text.documents import Document
from herd.data.text.pipeline import filter_documents
from herd.data.text.quality import DOCUMENT_FILTERS
from herd.data.text.report import Report
from herd.errors import HerdError


def small(megabytes: float) -> list[Document]:
    """Documents that are kept, too short, or in another language."""
    rng = random.Random(0)
    texts = ["\n".join(rng.sample(LINES, size)) for size in (6, 6, 5, 5, 2, 1, 1)]
    texts += ["\n".join([data_world.ARTICLE["de"]] * 3), "- a\n- b", "\n".join([*LINES, *LINES])]
    return [Document(language="en", source="s", page=str(page), text=text) for page, text in enumerate(texts)]


def test_a_case_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(HerdError, match="nothing: there are cleaning"):
        data(cases=("nothing",), megabytes=1, rounds=1, as_json=True)


@pytest.mark.slow
def test_cleaning_is_measured_beside_datatrove_with_an_equal_kept_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "english", small)
    own, same = cleaning.cleaning_rows(1, 1)
    assert own.unit == "documents/s" and own.more_is_better and own.peer_name.startswith("datatrove 0.10")
    assert "our words: the same 4 documents are kept by the filters" in same.peer_name
    kept = {document.page for document in filter_documents(small(1), cleaning.CONFIG, Report())}
    assert kept == {"0", "1", "2", "3"}
    monkeypatch.setattr(cleaning, "CONFIG", replace(cleaning.CONFIG, **dict.fromkeys(DOCUMENT_FILTERS, False)))
    with pytest.raises(HerdError, match="keeps other documents"):
        cleaning.cleaning_rows(1, 1)


@pytest.mark.slow
def test_tokenising_and_the_loader_are_measured_beside_the_library_and_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = [[line] * 3 for line in LINES for _ in range(20)]
    monkeypatch.setattr(tokens, "readers", lambda _: [("made up", lambda *_: pages, None)])
    monkeypatch.setattr(tokens, "pack_of", lambda name: name)
    monkeypatch.setattr(tokens, "TRAINED_STEPS", 1)
    monkeypatch.setattr(tokens, "LOADED_TOKENS", 20_000)
    [encoded] = tokens.token_rows(0.1, 1)
    assert encoded.unit == "MB/s" and encoded.ours > 0 and encoded.peer > 0 and encoded.more_is_better
    [loaded] = tokens.loader_rows(0.1, 1)
    assert loaded.unit == "tokens/s" and loaded.ratio > 1
