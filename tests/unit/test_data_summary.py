"""What a build prints at its end: filters that dropped most of a source, each with the option that switches it off."""

from dataclasses import fields, replace

import pytest
from test_text_cleaning import CASES, GERMAN, GOOD, NOTHING, run

from herd.config import CleaningConfig
from herd.data.text.documents import Document
from herd.data.text.pipeline import clean
from herd.stages.data_summary import describe_cleaning, describe_heldout, describe_source, losses

DROPPING = sorted(
    name for name, case in CASES.items() if case.reason is not None and name not in ("languages", "rehydrate")
)


def documents(source: str, texts: list[str]) -> list[Document]:
    return [Document(language="en", source=source, page=f"{i}", text=text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("name", DROPPING)
def test_the_option_that_is_named_is_the_one_of_the_filter(name: str) -> None:
    case = CASES[name]
    texts = [text for text in case.given if text not in case.left] or case.given
    config = replace(NOTHING, **{**case.others, name: case.value})
    dropped = run(case, config)[1].examples
    for reason in dropped:
        if reason.startswith("line: "):  # documents that have nothing else
            lines = {line for text in case.given for line in text.split("\n")} - set("\n".join(case.left).split("\n"))
            texts = sorted(lines) * 3
    if name in ("exact_duplicates", "near_duplicates"):
        texts = case.given * 3
    elif name == "language":
        texts = [GERMAN]
    report = run(replace(case, given=texts, languages=["en"] * len(texts)), config)[1]
    lines = losses(report.as_json(), ["made up"], share=0.2)
    option, *value = lines[0].split("--cleaning.")[1].removesuffix(" switches it off").split()
    field = option.removeprefix("no-").replace("-", "_")
    assert field == name
    off = False if option.startswith("no-") else float(value[0])
    assert off == getattr(NOTHING, name)


def test_a_filter_that_drops_most_of_a_source_is_named_with_the_count_and_an_example() -> None:
    texts = [f"Note {number}: call the harbour master before nine, the ferry waits for nobody." for number in range(9)]
    mine = [*documents("notes", texts), *documents("pages", [GOOD, "Short."])]
    kept, report = clean(mine, CleaningConfig(near_duplicates=0.0))
    assert len(list(kept)) == 1
    lines = losses(report.as_json(), ["notes", "pages"])
    [line] = lines  # half of the pages is not more than half
    assert line.startswith('notes: 9 of 9 documents were dropped: short, such as "Note ')
    assert line.endswith('": --cleaning.min-bytes 0 switches it off')
    assert not losses(report.as_json(), ["pages"])


def test_documents_that_lose_all_lines_are_said_to_have_lost_them_to_the_filter_of_lines() -> None:
    form = "\n".join(GOOD.split("\n")[:4])
    kept, report = clean(documents("forms", [form] * 30), CleaningConfig(boilerplate_documents=4))
    assert not list(kept)
    [line] = losses(report.as_json(), ["forms"])
    assert "30 of 30 documents were dropped: empty, as their lines were (boilerplate), such as" in line
    assert line.endswith(": --cleaning.boilerplate-documents 0 switches it off")


def test_control_characters_of_an_example_are_not_printed() -> None:
    kept, report = clean(documents("notes", ["\x1b[31mred\x07"]), CleaningConfig(normalise=False))
    list(kept)
    [line] = losses(report.as_json(), ["notes"])
    assert line.isprintable()


def test_a_language_that_is_not_wanted_has_no_option() -> None:
    kept, report = clean(documents("notes", [GERMAN]), CleaningConfig(languages=("de",)))
    list(kept)
    assert losses(report.as_json(), ["notes"])[0].endswith(', Obs"')


def test_every_filter_that_drops_documents_is_tried() -> None:
    switches = {one.name for one in fields(CleaningConfig)}
    others = {"languages", "normalise", "boilerplate_share", "c4_citations", "max_bytes", "mask", "rehydrate"}
    assert set(DROPPING) == switches - others


def test_contaminated_documents_are_named_with_the_evaluation_set_and_an_example() -> None:
    item = " ".join(f"word{number}" for number in range(20))
    mine = documents("notes", [f"{GOOD} {item}", "Short."])
    kept, report = clean(mine, CleaningConfig(language=False), evaluation={"quiz": [item]})
    assert not list(kept)
    line = describe_cleaning(report.as_json())
    assert "2 documents read" in line
    assert '; 1 document: contaminated (a passage of quiz), such as "' in line and "; 1 document: short" in line


def test_one_file_is_not_files_and_what_is_counted_has_a_unit() -> None:
    facts = {"name": "notes", "what": "text", "files": 1, "bytes": 300_000, "rows": {"train": 11, "heldout": 2}}
    assert describe_source(facts) == "notes: text, 1 file, 0.3 MB, documents 11 train, 2 heldout"
    assert ", 1,200 files, " in describe_source({**facts, "files": 1200})


def test_what_is_held_out_is_printed_only_where_heldout_bytes_decides_it() -> None:
    def line(train: int, heldout: int) -> str:
        found = {"de": {"train": {"bytes": train}, "heldout": {"bytes": heldout}}}
        return describe_heldout(found, share=0.04, least_bytes=60_000)

    assert line(79_000, 21_000).startswith("held out: 21% of the text, more than heldout=0.04: heldout_bytes=60,000")
    assert not line(1_920_000, 80_000) and not line(0, 0)
