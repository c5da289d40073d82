"""When answers are the same, and in which language they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config import LANGUAGES
from herd.data.text.spelling import normalise
from herd.evaluate.answers import LanguageOfAnswers

NAMES = {
    "en": ["a cat", "dog", "fire engine", "piano"],
    "de": ["Katze", "Hund", "Feuerwehrauto", "Klavier"],
    "es": ["gato", "perro", "coche de bomberos", "piano"],
    "pt": ["gato", "cachorro", "carro de bombeiros", "piano"],
    "ja": ["猫", "犬", "消防車", "ATM 機械"],
    "zh": ["猫", "狗", "消防车"],
    "hi": ["बिल्ली", "कुत्ता"],
}


@pytest.mark.parametrize(
    ("language", "answer", "same"),
    [
        ("en", "A Cat.", "cat"),
        ("en", "the  fire\nengine!", "fire engine"),
        ("de", "Eine Straße", "strasse"),
        ("fr", "L'ours", "ours"),
        ("fr", "l’ours", "ours"),
        ("it", "un'ape", "ape"),
        ("ja", "「猫」。", "猫"),
        ("ja", "ﾈｺ", "ネコ"),
        ("hi", "बिल्ली।", "बिल्ली"),
        ("ru", "Ёлка", "ёлка"),
    ],
)
def test_case_width_punctuation_and_articles_do_not_count(language: str, answer: str, same: str) -> None:
    assert normalise(answer, language) == same


@pytest.mark.parametrize(("language", "answer"), [("en", "the"), ("fr", "un"), ("pt", "o")])
def test_a_lone_article_stays_an_answer(language: str, answer: str) -> None:
    assert normalise(answer, language) == answer


@given(st.text(max_size=30), st.sampled_from(LANGUAGES))
def test_normalising_twice_changes_nothing(text: str, language: str) -> None:
    assert normalise(normalise(text, language), language) == normalise(text, language)


@pytest.mark.parametrize(
    ("answer", "language", "expected"),
    [
        ("cat", "en", True),
        ("Katze", "en", False),  # a name of another language only
        ("gato", "es", True),
        ("gato", "pt", True),  # shared by both
        ("fire dog", "en", True),  # no known name, but known words
        ("Hund und Katze", "de", True),
        ("Hund und Katze", "en", False),
        ("消防", "ja", True),
        ("ma", "ja", False),  # both letters stand in "ATM 機械", the word does not
        ("atm", "ja", True),
        ("消防", "de", False),
        ("qwertz", "en", False),
        ("", "en", False),
    ],
)
def test_known_names_and_then_words_decide_the_language(answer: str, language: str, expected: bool) -> None:
    assert LanguageOfAnswers(NAMES).is_in(answer, language) is expected


def test_a_name_of_another_language_is_wrong_even_where_its_words_are_known_here() -> None:
    judge = LanguageOfAnswers({"en": ["fire engine", "hot dog"], "xx": ["fire dog"]})
    assert not judge.is_in("fire dog", "en")
    assert judge.is_in("dog engine", "en")
