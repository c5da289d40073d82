"""The filters decide as datatrove's do, whose code FineWeb and FineWeb2 were made with: on the same texts, with the
thresholds of each language, and with datatrove's own words where tests can have them (tests/parity/test_words.py)."""

import random
from dataclasses import replace

import data_world
import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from test_words import CODES

from herd.config.cleaning import CleaningConfig
from herd.data.text import documents
from herd.data.text.passage import Passage
from herd.data.text.pipeline import filter_documents
from herd.data.text.quality import DOCUMENT_FILTERS, TERMINAL, gopher_alphabetic
from herd.data.text.report import Report
from herd.data.text.thresholds import BY_LANGUAGE, Thresholds, thresholds

NUM_TEXTS = 40
NOISE = ["#", "...", "…", "-", "•", "17", "3.14", "(", ")", ",", "!", "supercalifragilisticexpialidocious", "a"]


def texts(language: str) -> list[str]:
    """An article of the language, damaged in every way that a filter is there for, from hardly to badly."""
    rng = random.Random(language)
    article = data_world.ARTICLE[language]
    joint = "" if thresholds(language).tokens_per_word > 1 else " "
    units = list(article) if not joint else article.split()
    found = []
    for _ in range(NUM_TEXTS):
        badness = rng.random() ** 2
        words = [rng.choice(units) for _ in range(rng.choice([20, 60, 200]))]
        if rng.random() < 0.5:  # phrases again and again
            phrase = [rng.choice(units) for _ in range(rng.choice([2, 3, 4, 5, 7, 10]))]
            for place in range(0, len(words), max(int(3 / (badness + 0.1)), 1) * len(phrase)):
                words[place : place + len(phrase)] = phrase
        if rng.random() < 0.5:
            words = [rng.choice(NOISE) if rng.random() < badness else word for word in words]
        length = rng.choice([3, 8, 15])
        lines = [joint.join(words[start : start + length]) for start in range(0, len(words), length)]
        lines = [f"{line}{rng.choice(['', '.', '...', '。', '!'])}" for line in lines]
        for kind in ["- ", "• ", "repeat", "short"]:
            if rng.random() < 0.3:
                share = rng.choice([badness, 0.9, 0.95])
                for place in range(len(lines)):
                    if rng.random() < share:
                        lines[place] = {"repeat": lines[0], "short": lines[place][:20]}.get(kind, kind + lines[place])
        found.append("\n".join(line for line in map(str.strip, lines) if line))
    return [text for text in found if text]


def give_our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gopher_quality_filter", "gopher_repetition_filter", "fineweb_quality_filter"):
        path = f"datatrove.pipeline.filters.{name}.split_into_words"
        monkeypatch.setattr(path, lambda text, language: Passage(text, language).tokens)


def theirs(code: str, limits: Thresholds) -> dict[str, object]:
    """datatrove's filters, by the names of those of ours that each is."""
    n = limits.tokens_per_word
    low, high = limits.word_length
    quality = GopherQualityFilter(
        min_doc_words=limits.min_words,
        max_doc_words=limits.max_words,
        min_avg_word_length=low,
        max_avg_word_length=high,
        max_symbol_word_ratio=limits.symbols_per_word,
        max_bullet_lines_ratio=limits.bullet_lines,
        max_ellipsis_lines_ratio=limits.ellipsis_lines,
        max_non_alpha_words_ratio=0,  # not asked: see below
        min_stop_words=limits.min_stop_words,
        stop_words=sorted(limits.stop_words),
        language=code,
    )
    repetition = GopherRepetitionFilter(
        dup_line_frac=limits.duplicate_lines,
        dup_para_frac=0,
        dup_line_char_frac=0,
        dup_para_char_frac=0,
        top_n_grams=tuple(zip((2, 3, 4), limits.top_ngrams, strict=True)),
        dup_n_grams=tuple(zip(range(5, 11), limits.duplicate_ngrams, strict=True)),
        language=code,
    )
    fineweb = FineWebQualityFilter(
        line_punct_thr=limits.line_punctuation,
        short_line_thr=limits.short_lines,
        char_duplicates_ratio=limits.duplicate_line_chars,
        new_line_ratio=limits.newlines_per_word,
        stop_chars=TERMINAL,
        language=code,
    )
    assert n == 1
    return {"gopher_": quality, "repetition": repetition, "fineweb_": fineweb}


REPETITION = {"gopher_duplicate_lines", "gopher_top_ngrams", "gopher_duplicate_ngrams"}
GROUPS = {
    "repetition": REPETITION,
    "gopher_": {name for name in DOCUMENT_FILTERS if name.startswith("gopher_")} - REPETITION - {"gopher_alphabetic"},
    "fineweb_": {name for name in DOCUMENT_FILTERS if name.startswith("fineweb_")},
}


@pytest.mark.parametrize("language", [name for name, one in BY_LANGUAGE.items() if one.tokens_per_word == 1])
def test_the_filters_of_a_spaced_language_decide_as_datatrove_does(
    language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = thresholds(language)
    decisions = {False: 0, True: 0}
    if language not in CODES:
        give_our_words(monkeypatch)
    for group, peer in theirs(CODES.get(language, language), limits).items():
        for text in texts(language):
            passage = Passage(text, language)
            faults = {name for name in GROUPS[group] if DOCUMENT_FILTERS[name](passage, limits)}
            with np.errstate(all="ignore"):
                verdict = peer.filter(Document(text=text, id="0"))
            kept = verdict if isinstance(verdict, bool) else verdict[0]
            assert kept == (not faults), (group, faults, verdict, text)
            decisions[kept] += 1
    assert min(decisions.values()) > 20  # both ways often enough to mean something


@pytest.mark.parametrize("language", [name for name, one in BY_LANGUAGE.items() if one.tokens_per_word == 1])
def test_the_share_of_words_with_a_letter_is_datatroves_given_no_punctuation_marks(
    language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "datatrove.pipeline.filters.gopher_quality_filter.split_into_words"
    monkeypatch.setattr(path, lambda text, language: [one for one in Passage(text, language).tokens if is_word(one)])
    peer = GopherQualityFilter(0, 0, 0, 0, 0, 0, 0, max_non_alpha_words_ratio=0.8, min_stop_words=0, language=language)
    decisions = {False: 0, True: 0}
    rng = random.Random(language)
    for text in texts(language):
        numbers = " ".join(str(rng.randint(0, 9999)) for _ in range(int(rng.random() * 0.5 * len(text.split()))))
        text = f"{text}\n{numbers}"
        verdict = peer.filter(Document(text=text, id="0"))
        kept = verdict if isinstance(verdict, bool) else verdict[0]
        assert kept == (not gopher_alphabetic(Passage(text, language), thresholds(language)))
        decisions[kept] += 1
    assert min(decisions.values()) > 5


def is_word(token: str) -> bool:
    return any(map(str.isalnum, token))


def test_c4_keeps_the_lines_and_documents_that_datatrove_keeps() -> None:
    article = data_world.ARTICLE["en"]
    odd = [
        "We use cookies to improve your visit.", "Please switch on JavaScript in your browser.", "Menu", "Home | About",
        "x" * 1001 + " is a long word.", "Lorem ipsum dolor sit amet.", "if (x) { return; }", "To be continued...",
        "He left in 1981.[12]", "This one ends with a citation[citation needed]", "Is it so?",
        "“Quoted.\"", "Two words.",
    ]  # fmt: skip
    rng = random.Random(4)
    off = dict.fromkeys([name for name in DOCUMENT_FILTERS if not name.startswith("c4_")], False)
    config = replace(
        CleaningConfig(),
        **off,
        language=False,
        boilerplate_documents=0,
        min_bytes=0,
        max_symbol_share=1.0,
        mask=(),
        c4_javascript=True,
        c4_words_per_line=True,
        c4_curly_bracket=True,
        c4_terminal_punctuation=True,
    )
    peer = C4QualityFilter(min_num_sentences=-1)
    decisions = set()
    for _ in range(200):
        lines = rng.sample(article.split(". "), 2) + rng.sample(odd, rng.choice([1, 2, 5]))
        rng.shuffle(lines)
        text = "\n".join(lines)
        ours = list(
            filter_documents([documents.Document(language="en", source="s", page="p", text=text)], config, Report())
        )
        mine = Document(text=text, id="0")
        verdict = peer.filter(mine)
        kept = verdict if isinstance(verdict, bool) else verdict[0]
        assert [one.text for one in ours] == ([mine.text] if kept and mine.text else []), text
        decisions.add(kept)
    assert decisions == {True, False}
