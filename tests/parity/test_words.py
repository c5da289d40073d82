"""The words of the filters are those of datatrove's tokenizers, chunk by chunk and in whole texts."""

import json
import random
import re

import data_world
import pytest
import spacy_rules
from datatrove.utils.word_tokenizers import load_word_tokenizer

from herd.data.text import word_rules, words
from herd.data.text.passage import Passage

CODES = {
    "en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn", "es": "spa_Latn", "it": "ita_Latn", "pt": "por_Latn",
    "ru": "rus_Cyrl", "id": "ind_Latn", "ar": "arb_Arab",
}  # fmt: skip
"""Languages whose words are equal, by datatrove's names of them; Hindi's library is not among the test dependencies."""
PIECES = [
    *'.,:;!?…—–-()[]{}<>"\'’“”«»/*+=%$€#&@_~|',
    "...", "--", "1", "3.14", "2,5", "10", "km", "kg", "°C.", "US$", "Rp", "www.site.org/a?b=c", "me@site.org",
    "http://a.b", ":)", ":-(", "'s", "’s", "n't", "don't", "cannot", "I'm", "U.S.", "e.g.", "z.B.", "aujourd'hui", "l'",
    "d’", "après-midi", "porte-monnaie", "dell'", "т.д.", "т.ч.", "из-за", "buku-buku", "dr.", "word", "Wort", "él",
    "АБВ", "كتاب", "漢字", "😀", "x", "A", "\u0301",
]  # fmt: skip
AROUND = (("", '"', "(", "“"), ("", '"', ")", "”", "'s"), ("", ",", ";", ":", "!", "?", "."), ("", "", '"', ")"))


def test_the_rules_in_the_file_are_those_of_spacy() -> None:
    assert json.loads(word_rules.RULES.read_text(encoding="utf-8")) == spacy_rules.rules()


@pytest.mark.parametrize("language", [*CODES, "xx"])
def test_a_chunk_is_split_as_spacy_splits_it(language: str) -> None:
    rng = random.Random(language)
    tokenizer = spacy_rules.blank(language).tokenizer
    own = words.splitter(language)
    exceptions = [one for one in tokenizer.rules if not one.isspace() and " " not in one]
    chunks = exceptions[:: max(len(exceptions) // 200, 1)]
    pieces = PIECES + rng.sample(exceptions, 50)
    chunks += ["".join(rng.choices(pieces, k=rng.randint(1, 6))) for _ in range(1000)]
    heads = re.findall(r"\w+", data_world.ARTICLE[language if language in CODES else "en"])
    for _ in range(1000):
        word = "-".join(rng.sample(heads, rng.choice([1, 1, 2, 3])))
        chunks.append("".join(rng.choice(marks) + word * (at == 0) for at, marks in enumerate(AROUND)))
    for chunk in chunks:
        assert own.split(chunk) == tuple(token.text for token in tokenizer(chunk)), chunk


@pytest.mark.parametrize("language", CODES)
def test_a_text_has_the_words_that_datatrove_counts(language: str) -> None:
    article = data_world.ARTICLE[language]
    spaced = "Véase EE. UU. aquí.\nЭто в т.ч. (до н.э.), д-р мед. наук; Dr. med. Dr. rer. nat. foo"
    for text in (article, f"{article}\n\n  - {article}\t{article}", spaced):
        assert Passage(text, language).tokens == load_word_tokenizer(CODES[language]).word_tokenize(text)


def test_hindi_is_split_at_marks_but_not_within_numbers() -> None:
    assert Passage("यह 3.14 है, और 2020, 5।\nअगला C:\\x", "hi").tokens == [
        "यह", "3.14", "है", ",", "और", "2020,5", "।", "अगला", "C", ":", "\\x",
    ]  # fmt: skip


def test_a_language_that_is_not_known_has_the_rules_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert words.splitter("nl") is words.splitter("sv") is words.splitter(word_rules.OTHERS)
    assert Passage("ab漢字か。", "ja").tokens == ["ab", "漢", "字", "か", "。"]
    monkeypatch.setattr(words, "MAX_REMEMBERED", 3)
    before = words.vocabulary("nl")
    text = "een twee drie vier een vijf zes zeven vijf"
    assert Passage(text, "nl").tokens == text.split()
    assert words.vocabulary("nl") is not before
