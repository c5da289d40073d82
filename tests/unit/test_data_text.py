"""Markup to paragraphs, languages, filters, names: each on passages that separate right from wrong."""

from pathlib import Path

import data_world
import pytest

from herd.config import LANGUAGES
from herd.data.packages.names import capital_names, caption_of, country_names, name_of
from herd.data.packages.text import CLEANING, read_language
from herd.data.text.contamination import EvaluationIndex
from herd.data.text.documents import Document
from herd.data.text.languages import is_language, may_be_language
from herd.data.text.markup import html_blocks
from herd.data.text.passage import symbol_share
from herd.data.text.pipeline import filter_documents
from herd.data.text.report import Report

ENGLISH = "The river runs through the old town and past the market, where people buy bread, fruit and flowers."


def documents(pages: list[list[str]]) -> list[Document]:
    return [
        Document(language="de", source="made up", page=str(number), text="\n".join(lines))
        for number, lines in enumerate(pages)
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_is_distinguished_from_the_other_twelve(language: str) -> None:
    reported = [other for other in LANGUAGES if is_language(data_world.ARTICLE[language], other)]
    assert reported == [language]


def test_a_short_line_counts_for_any_latin_language_but_not_for_another_script() -> None:
    assert may_be_language("Menu File Save", "de")
    assert not may_be_language("Menu File Save", "hi")
    assert may_be_language("3.14", "hi")
    assert not may_be_language(ENGLISH, "de")


def test_blocks_end_where_elements_do_and_inline_markup_does_not_cut() -> None:
    html = """<body><nav>menu</nav><h1>A <b>bold</b> title</h1><ul><li>one<li><p>two</p></ul>
    before<div class="para">in<table><tr><td>x<td>y</table>after</div><pre>code</pre><p>a<br>b &amp; c</p></body>"""
    expected = ["A bold title", "one", "two", "before", "in", "x", "y", "after", "a b & c"]
    assert html_blocks(html) == expected
    assert html_blocks("<p>text", root="#nowhere") == []


def test_combining_marks_are_letters_to_the_symbol_filter() -> None:
    assert symbol_share(data_world.ARTICLE["hi"]) == 0
    assert symbol_share("مَرْحَبًا") == 0
    assert symbol_share("x = {3: 4}") > 0.5


def test_filters_drop_what_they_should_and_count_it() -> None:
    german = data_world.ARTICLE["de"]
    pages = [[f"{german} {german} {word}", "Alle Rechte vorbehalten", ENGLISH, "== {1} ==", word] for word in "abcd"]
    report = Report()
    kept = list(filter_documents(documents([*pages, ["zu kurz"]]), CLEANING, report))
    assert [document.text for document in kept] == [f"{german} {german} {word}\n{word}" for word in "abcd"]
    assert report.dropped == {
        "line: boilerplate": 4,
        "line: other language": 4,
        "line: symbols": 4,
        "document: short": 1,
    }
    assert report.left["read"]["documents"] == 5 and report.left["contamination"]["documents"] == 4


def test_long_pages_become_several_documents_and_lose_nothing() -> None:
    blocks = [f"{data_world.ARTICLE['de']} {index} {'wort ' * 40}" for index in range(100)]
    kept = list(filter_documents(documents([blocks]), CLEANING, Report()))
    assert len(kept) > 2 and all(document.num_bytes <= 8_000 for document in kept)
    assert [line for document in kept for line in document.text.split("\n")] == blocks


def test_reading_stops_at_the_budget(tmp_path: Path) -> None:
    packs = data_world.fetched(tmp_path).packs
    for budget in (3_000, 12_000, 24_000):
        size = sum(document.num_bytes for document in read_language("en", packs, budget, Report()))
        assert budget <= size < budget + 3_000


def test_documents_of_the_packages_with_a_passage_of_an_evaluation_set_are_left_out(tmp_path: Path) -> None:
    packs, report = data_world.fetched(tmp_path).packs, Report()
    asked = read_language("en", packs, 12_000, Report())[3].text
    left = read_language("en", packs, 12_000, report, EvaluationIndex({"exam": [asked]}, 13))
    assert left and not any(asked in document.text for document in left)
    assert report.contaminated["exam"] >= 1 and sum(document.num_bytes for document in left) >= 12_000


@pytest.mark.parametrize(
    ("caption", "language", "name"),
    [
        ("A happy snail.", "en", "happy snail"),
        ("Ein Hüttensänger.", "de", "Hüttensänger"),
        ("Un'allegra lumaca.", "it", "allegra lumaca"),
        ("L'oiseau bleu.", "fr", "oiseau bleu"),
        ("一只小兔子。", "zh", "小兔子"),
        ("Весёлая улитка.", "ru", "весёлая улитка"),
        ("Sebuah menara.", "id", "menara"),
        ("एक खुश घोंघा।", "hi", "खुश घोंघा"),
        ("Adelaide Rosella.", "en", "Adelaide Rosella"),
        ("A US 25 cent piece ($.25) called a quarter.", "en", ""),
        ("The green light means you can go.", "en", ""),
        ("あおになったら すすんでいいよ。", "ja", ""),
    ],
)
def test_a_name_is_the_caption_without_article_and_stop_or_nothing(caption: str, language: str, name: str) -> None:
    assert name_of(caption, language) == name


@pytest.mark.parametrize(
    ("raw", "language", "caption"),
    [
        ("A أرنب صغير.", "ar", "أرنب صغير."),
        (".حلزون سعيد", "ar", "حلزون سعيد."),
        ("एक गुलाब|", "hi", "एक गुलाब।"),
        ("ちいさな　ウサギ", "ja", "ちいさな ウサギ。"),
        ("Ein Tannenbaum!", "de", "Ein Tannenbaum!"),
        (" . ", "en", ""),
    ],
)
def test_captions_are_put_in_order(raw: str, language: str, caption: str) -> None:
    assert caption_of(raw, language) == caption


def test_capitals_are_named_by_their_time_zones_and_in_english_without_one(tmp_path: Path) -> None:
    packs = data_world.fetched(tmp_path).packs
    capitals = capital_names(packs)
    assert capitals["FR"]["de"] == "Paris-de" and capitals["FR"]["en"] == "Paris"
    assert capitals["PE"] == {"en": "Lima"}
    assert country_names(packs)["FR"]["en"] == "Land FR" and country_names(packs)["FR"]["hi"] == "Land FR hi"
