"""Languages and scripts: known from more than a title, and the source has the last word where the detector cannot."""

import re
import zipfile

import data_world
import pytest

from herd.config import LANGUAGES
from herd.core.files import cache_folder
from herd.data.text.languages import IDENTIFIED_CHARS, KIN, MIN_IDENTIFIED, detect, is_language, script
from herd.data.text.markup import html_blocks
from herd.data.text.thresholds import BY_LANGUAGE, DEFAULT, thresholds

SCRIPTS = {"ru": "Cyrl", "ja": "Jpan", "zh": "Hani", "hi": "Deva", "ar": "Arab"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_and_its_script_are_identified(language: str) -> None:
    found, probability = detect(data_world.ARTICLE[language])
    assert found == language and probability >= MIN_IDENTIFIED
    assert script(data_world.ARTICLE[language]) == SCRIPTS.get(language, "Latn")


def test_a_document_is_identified_by_more_than_its_title() -> None:
    title = "The Universal Declaration of Human Rights, adopted by the General Assembly in Paris in December 1948"
    text = "\n".join([title, *[data_world.ARTICLE["de"]] * 4])
    assert len(title) > 80 and detect(text)[0] == "de" and is_language(text, "de")


def test_identification_reads_the_beginning_of_a_long_document_only() -> None:
    article = data_world.ARTICLE["de"]
    text = article * (IDENTIFIED_CHARS // len(article) + 1)
    assert detect(text + data_world.ARTICLE["en"] * 1000) == detect(text)


def test_what_the_detector_does_not_know_is_decided_by_the_source() -> None:
    german = " ".join([data_world.ARTICLE["de"]] * 3)
    assert is_language(german, "xx") and is_language(german, "zu")  # it has no such languages
    assert not is_language(german, "mt")  # it has, and is sure that this is another one
    assert not is_language(german, "en")
    norwegian = (
        "Alle mennesker er født frie og med samme menneskeverd og menneskerettigheter. De er utstyrt med fornuft."
    )
    assert detect(norwegian)[0] in KIN["nb"] and is_language(norwegian, "nb")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Καλημέρα", "Grek"), ("שלום", "Hebr"), ("한국어", "Hang"), ("ภาษาไทย", "Thai"), ("ქართული", "Geor"),
        ("日本語のテキスト", "Jpan"), ("漢字ばかりの文章ではないが少し", "Jpan"), ("中文", "Hani"),
        ("the Москва of it", "Latn"),
        (f"{'a' * 27}かきく", "Latn"), (f"{'a' * 26}かきく", "Jpan"), (f"{'a' * 31}かきく", "Latn"),
        ("123 !?", "Zyyy"), ("", "Zyyy"), ("ꆈꌠ", "Zzzz"),
    ],
)  # fmt: skip
def test_the_script_is_that_of_most_letters(text: str, code: str) -> None:
    assert script(text) == code


def test_thresholds_are_fineweb2s_for_a_language_and_those_of_no_language_for_others() -> None:
    assert set(LANGUAGES) <= set(BY_LANGUAGE)
    assert thresholds("xx") is DEFAULT and not DEFAULT.stop_words and DEFAULT.word_length == (0, 100)
    # Of the published configs/deu_Latn.yml and its like.
    assert thresholds("de").newlines_per_word == 0.152
    assert thresholds("fr").top_ngrams == (0.161, 0.149, 0.134) and thresholds("es").line_punctuation == 0.3
    for limits in BY_LANGUAGE.values():
        assert list(limits.duplicate_ngrams) == sorted(limits.duplicate_ngrams, reverse=True)
        assert 0 <= limits.word_length[0] < limits.word_length[1] and limits.alphabetic_words == 0.8


@pytest.mark.slow
def test_the_declaration_of_human_rights_is_identified_in_its_languages() -> None:
    """Each file says what language it is in; those that the detector has no good model of may not be mistaken often."""
    paths = sorted(cache_folder().glob("udhr-*.zip"))
    if not paths:
        pytest.skip("udhr is not in the cache: run `herd data fetch`")
    right: dict[str, bool] = {}
    sure: dict[str, bool] = {}
    with zipfile.ZipFile(paths[-1]) as archive:
        for name in archive.namelist():
            html = archive.read(name).decode()
            tag = re.search(r'<html[^>]*\blang="([a-z]{2})(?:-[^"]*)?"', html)
            if tag:
                text = "\n".join(html_blocks(html))
                found, probability = detect(text)
                right[name] = found == tag[1] or found in KIN.get(tag[1], ())
                sure[name] = probability >= MIN_IDENTIFIED
                if tag[1] in LANGUAGES and "han" not in name and "_" not in name and not name[12].isdigit():
                    assert right[name] and sure[name], name
    assert len(right) > 200 and sum(right.values()) / len(right) >= 0.58
    assert sum(right[name] for name in right if sure[name]) / sum(sure.values()) >= 0.9
