"""Every filter, switched on alone, removes what its publication says; switched off, none does anything."""

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from herd.config import CleaningConfig
from herd.data.text.documents import AUTO, Document, digest
from herd.data.text.passage import Passage
from herd.data.text.pipeline import clean
from herd.data.text.quality import gopher_alphabetic
from herd.data.text.report import Report
from herd.data.text.thresholds import thresholds

LINES = [
    "The old river runs through the town and past the market, where people buy bread, fruit and flowers.",
    "In winter the boats stay in the harbour, and their owners mend the nets that were torn in the storms of autumn.",
    "A teacher who had lived there for forty years wrote a short history of the place, which nobody printed.",
    "It begins with the bridge, of which only two pillars are left, and ends with the fire that burnt the mill.",
    "Those who have read it say that its best page is a list of names: all the children whom she taught to read.",
    "The last of them still keeps the shop at the corner, and he sells the copy of it to nobody.",
]
GOOD = "\n".join(LINES)
"""A document that every filter keeps."""
GERMAN = "Der alte Fluss läuft durch die Stadt und am Markt vorbei, wo die Leute Brot, Obst und Blumen kaufen."
QUESTION = "Which of the two pillars of the old bridge was built before the great fire of the mill?"
MAIL = "Write to anna.berg@example.org for a copy of the book that nobody has ever printed."

_OFF_VALUES: dict[str, Any] = {"max_symbol_share": 1.0, "languages": (), "mask": ()}
OFF = {one.name: _OFF_VALUES.get(one.name, False if one.default is True else 0) for one in fields(CleaningConfig)}
NOTHING = CleaningConfig(**{name: bool(value) if value is False else value for name, value in OFF.items()})
"""Every filter is off."""


@dataclass(frozen=True)
class Case:
    """Texts, and what is left of them when one filter is on."""

    given: list[str]
    left: list[str]
    value: Any = True
    reason: str | None = ""
    """What the report calls it if it is not the name of the field; None if nothing is dropped."""
    others: dict[str, Any] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)
    repeats: dict[str, int] = field(default_factory=dict)


def words(number: int, form: str = "word{}") -> str:
    return " ".join(form.format(index) for index in range(number))


NOTICES = [f"{text}\nAll rights reserved" for text in "abc"]
TWINS = sorted([GOOD, f"{GOOD} The end."], key=digest)

CASES = {
    "languages": Case([GOOD, GERMAN], [GERMAN], ("de",), languages=["en", "de"], reason="language not wanted"),
    "mojibake": Case([GOOD, "Ã¼ber die BrÃ¼cke"], [GOOD]),
    "normalise": Case(["Cafe\u0301\r\nand\u200b tea \n\n\n\nat\x00 five"], ["Café\nand tea\n\nat five"], reason=None),
    "line_symbols": Case(["a line\n== {1} == 2\nanother"], ["a line\nanother"], reason="symbols"),
    "line_language": Case([f"{LINES[0]}\n{GERMAN}"], [LINES[0]], reason="other language"),
    "boilerplate_documents": Case(NOTICES, ["a", "b", "c"], 3, reason="boilerplate"),
    "boilerplate_share": Case(
        [*NOTICES, *"defghi"], [*NOTICES, *"defghi"], 0.5, reason=None, others={"boilerplate_documents": 3}
    ),
    "c4_citations": Case(["In 1981.[12] He[citation needed] x[y] [edit]"], ["In 1981. He x[y] "], reason=None),
    "c4_long_words": Case(
        [f"one\n{'x' * 1001} two\n{'y' * 1000} three\n{'z ' * 900}{'x' * 1001} z"],
        [f"one\n{'y' * 1000} three"],
    ),
    "c4_policy": Case(["one\nRead our Privacy Policy here\nThis site uses cookies.\ntwo"], ["one\ntwo"]),
    "c4_javascript": Case(["one\nPlease enable JavaScript to go on\ntwo"], ["one\ntwo"]),
    "c4_terminal_punctuation": Case(["A title\nA sentence.\nIs it?\nAnd so on..."], ["A sentence.\nIs it?"]),
    "c4_words_per_line": Case(["Home\nAbout us\nA whole line."], ["A whole line."]),
    "max_bytes": Case(["aaaa\nbbbb\ncccc"], ["aaaa\nbbbb", "cccc"], 10, reason=None),
    "min_bytes": Case(["é" * 10, "é" * 9], ["é" * 10], 20, reason="short"),
    "max_symbol_share": Case(["word 123", "word 1234567"], ["word 123"], 0.5, reason="symbols"),
    "language": Case([GOOD, GERMAN, LINES[0]], [GOOD, GERMAN], reason="other language", languages=["en", AUTO, "de"]),
    "gopher_words": Case([words(50), words(49)], [words(50)]),
    "gopher_word_length": Case([words(5, "abc"), words(5, "ab"), words(5, "a" * 11)], [words(5, "abc")]),
    "gopher_symbols": Case([f"{words(20)} # #", f"{words(20)} # # #", f"{words(20)} ... … ..."], [f"{words(20)} # #"]),
    "gopher_bullets": Case(["• one\n- two\n* three", "• one\n" * 9 + "two"], ["• one\n" * 9 + "two"]),
    "gopher_ellipses": Case(["a…\nb...\nc\nd", "a…\nb\nc\nd"], ["a…\nb\nc\nd"]),
    "gopher_alphabetic": Case(["one two three 4 !", "one two three four 5"], ["one two three four 5"]),
    "gopher_stop_words": Case(["the cat and dog", "the cat or dog"], ["the cat and dog"]),
    "gopher_duplicate_lines": Case(["a\nb\nc\na\nb", "a\nb\nc\na"], ["a\nb\nc\na"]),
    "gopher_top_ngrams": Case([f"{words(30)} {'the end ' * 9}", words(30)], [words(30)]),
    "gopher_duplicate_ngrams": Case([f"{GOOD}\n{LINES[0]}\n{LINES[0]}", GOOD], [GOOD]),
    "fineweb_punctuation": Case(["a.\nb\nc\nd\ne\nf\ng\nh", "a.\nb\nc\nd\ne\nf\ng\nh\ni"], ["a.\nb\nc\nd\ne\nf\ng\nh"]),
    "fineweb_short_lines": Case(["x" * 30 + "\ny\n" + "z" * 31, "x\ny\nz"], ["x" * 30 + "\ny\n" + "z" * 31]),
    "fineweb_duplicate_lines": Case(["a" * 97 + "\nb\nb", "a" * 99 + "\nb\nb"], ["a" * 99 + "\nb\nb"]),
    "fineweb_newlines": Case(["one two three\nfour", "one\ntwo\nthree"], ["one two three\nfour"]),
    "c4_lorem_ipsum": Case([GOOD, "Lorem ipsum dolor sit amet."], [GOOD]),
    "c4_curly_bracket": Case([GOOD, "if (x) { return; }"], [GOOD]),
    "c4_sentences": Case(["One. Two! Three? Four… Five.", "One. Two! Three? Four."], ["One. Two! Three? Four… Five."]),
    "contamination_ngram": Case([GOOD, f"{LINES[0]}\nQ: {QUESTION.upper()}"], [GOOD], 13, reason="contaminated"),
    "mask": Case([MAIL], [MAIL.replace("anna.berg@example.org", "[email]")], ("email",), reason=None),
    "exact_duplicates": Case([GOOD, GERMAN, GOOD], [GOOD, GERMAN], reason="exact duplicate"),
    "near_duplicates": Case([*TWINS, GERMAN], [TWINS[0], GERMAN], 0.7, reason="near duplicate"),
    "rehydrate": Case(
        [GOOD] * 5 + [GERMAN],
        [GOOD, GERMAN],
        reason="exact duplicate",
        others={"exact_duplicates": True},
        repeats={GOOD: 5},
    ),
}


def run(case: Case, config: CleaningConfig) -> tuple[list[tuple[str, int]], Report]:
    languages = case.languages or ["en"] * len(case.given)
    documents = [
        Document(language=language, source="made up", page=str(page), text=text)
        for page, (text, language) in enumerate(zip(case.given, languages, strict=True))
    ]
    kept, report = clean(documents, config, evaluation={"exam": [QUESTION]})
    return sorted((document.text, document.repeats) for document in kept), report


@pytest.mark.parametrize("name", sorted({*OFF, *CASES}))
def test_a_filter_removes_what_it_is_for_and_does_nothing_when_it_is_off(name: str) -> None:
    case = CASES[name]
    config = replace(NOTHING, **case.others)
    left, report = run(case, replace(config, **{name: case.value}))
    assert left == sorted((text, case.repeats.get(text, 1)) for text in case.left)
    reasons = {reason.partition(": ")[2] for reason in report.dropped}
    assert reasons == (set() if case.reason is None else {case.reason or name})
    assert run(case, config)[0] != left
    unchanged, report = run(case, NOTHING)
    assert unchanged == sorted((text, 1) for text in case.given) and not report.dropped


def test_a_good_document_passes_the_defaults_and_is_counted_at_every_step() -> None:
    documents = [Document(language="en", source="made up", page="1", text=GOOD)]
    kept, report = clean(documents, CleaningConfig(), evaluation={"exam": [QUESTION]})
    assert [document.text for document in kept] == [GOOD] and not report.dropped
    steps = ["read", "language", "lines", "quality", "contamination", "exact duplicates", "near duplicates"]
    assert report.left == {step: {"documents": 1, "bytes": len(GOOD)} for step in steps}
    assert report.by_language == {"en_Latn": len(GOOD)} and report.by_source == {"made up": len(GOOD)}


def test_punctuation_marks_are_no_words_without_a_letter() -> None:
    """Clean prose with many names, dates and brackets: more than a fifth of its tokens are punctuation marks."""
    text = (
        "Ada Lovelace (born Byron; 10 December 1815, London) was a mathematician: she, with Charles Babbage, described "
        "the “Analytical Engine”; her notes (A, B, C, D, E, F, G) were printed, in “Taylor's Memoirs”, in 1843."
    )
    passage, limits = Passage(text, "en"), thresholds("en")
    assert sum(any(map(str.isalpha, token)) for token in passage.tokens) < 0.7 * len(passage.tokens)
    assert not gopher_alphabetic(passage, limits)
    assert gopher_alphabetic(Passage("1815 10 1843 12 of the 99 engines", "en"), limits)


def test_documents_that_are_alike_are_not_emptied_by_the_defaults() -> None:
    texts = [f"{GOOD}\nThis copy was printed on the {number}th day of the year." for number in range(30)]
    documents = [Document(language="en", source="forms", page=text, text=text) for text in texts]
    kept, report = clean(documents, CleaningConfig(near_duplicates=0.0))
    assert len(list(kept)) == 30 and not report.dropped


def test_no_text_is_dropped_without_a_count() -> None:
    texts = [GOOD, GERMAN, MAIL, "", " \n ", "We use cookies.", "x", GOOD, f"{GOOD} The end.", "{}", "Ã¼ Ã¼"]
    documents = [Document(language="en", source="made up", page=text, text=text) for text in texts]
    kept, report = clean(documents, CleaningConfig())
    number = len(list(kept))
    dropped = sum(count for reason, count in report.dropped.items() if reason.startswith("document: "))
    assert number and number + dropped == len(texts) == report.left["read"]["documents"]


def test_the_page_about_data_lists_every_filter_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    defaults = {one.name: one.default for one in fields(CleaningConfig)}
    shown = {True: "on", False: "off", (): "all", ("email", "phone", "iban", "key"): "all four"}
    assert listed == {name: shown.get(value, str(value)) for name, value in defaults.items()}  # type: ignore[arg-type]
