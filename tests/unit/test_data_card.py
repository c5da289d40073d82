"""The data card as a page has what herd.json has, with nothing of a text taken for markup and no personal data."""

from pathlib import Path

from selectolax.lexbor import LexborHTMLParser
from test_text_cleaning import GERMAN, GOOD, QUESTION

from herd.config import CleaningConfig
from herd.data.text.documents import Document
from herd.data.text.pipeline import clean
from herd.data.text.report import Report
from herd.data.view.card import STEPS, write_card


def report_of(texts: list[str]) -> Report:
    documents = [
        Document(language="en", source="pages <1>", page=str(page), text=text) for page, text in enumerate(texts)
    ]
    kept, report = clean(documents, CleaningConfig(), evaluation={"exam": [QUESTION, "short"]})
    list(kept)
    return report


def test_the_page_has_the_counts_reasons_licences_and_examples(tmp_path: Path) -> None:
    mail = "<script>alert(1)</script> {{ 7 * 7 }} anna.berg@example.org +49 30 901820"
    report = report_of([GOOD, f"{GOOD} Write to anna.berg@example.org.", GERMAN * 3, mail, f"{GOOD}\n{QUESTION}"])
    card = {
        "documents": {"en": {"train": {"documents": 1, "bytes": 12_345_678}}},
        "cleaning": report.as_json(),
        "sources": [
            {"name": "my pages", "licence": "CC-BY-4.0", "what": "pages", "bytes": 4321},
            {"name": "others", "what": "text files", "bytes": 1},
        ],
        "left_out": ["a package: <not fetched>"],
    }
    page = write_card(tmp_path, card)
    tree = LexborHTMLParser(page.read_text(encoding="utf-8"))
    text = " ".join(tree.body.text().split())
    rows = [tuple(" ".join(cell.text().split()) for cell in row.css("td")) for row in tree.css("tr") if row.css("td")]
    for step, words in STEPS.items():
        if step in report.left:
            left = report.left[step]
            assert (words, f"{left['documents']:,}", f"{left['bytes']:,}") in rows
    for reason, number in report.dropped.items():
        assert any(row[:2] == (reason, str(number)) for row in rows), reason
    assert ("my pages", "CC-BY-4.0", "pages", "4,321") in rows and ("others", "not stated", "text files", "1") in rows
    assert (
        ("email", "1") in rows and ("exam", "1") in rows and ("en_Latn", f"{report.by_language['en_Latn']:,}") in rows
    )
    assert "12,345,678" in text and "a package: <not fetched>" in text
    assert not tree.css("script") and "<script>alert(1)</script> {{ 7 * 7 }} [email] [phone]" in text
    assert "anna.berg" not in page.read_text(encoding="utf-8") and "901820" not in text


def test_a_folder_without_text_has_a_card_too(tmp_path: Path) -> None:
    page = write_card(tmp_path, {"chats": {"mine train": 3}, "sources": [], "left_out": []})
    assert "mine train" in page.read_text(encoding="utf-8")
