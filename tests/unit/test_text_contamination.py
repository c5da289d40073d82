"""Documents with passages of an evaluation set are found, named, and nothing else is."""

import random
from collections import Counter
from dataclasses import fields
from itertools import accumulate

import pytest

from herd.config import CleaningConfig
from herd.data.text.contamination import ANY, NUMBER, EvaluationIndex, Pattern, words_of
from herd.data.text.documents import Document
from herd.data.text.pipeline import clean

CONFIG = CleaningConfig(
    **{field.name: False for field in fields(CleaningConfig) if field.default is True},
    min_bytes=0,
    max_bytes=0,
    boilerplate_documents=0,
    near_duplicates=0.0,
    mask=(),
    max_symbol_share=1.0,
)
NUM_LEAKS = 500
NUM_CLEAN = 2000
ITEM_CHARS = 80


NUM_WORDS = 3000
FREQUENCIES = list(accumulate(1 / (rank + 3) for rank in range(NUM_WORDS)))
"""Zipf's, added up."""


def sentence(rng: random.Random, known: list[str], number: int) -> list[str]:
    return rng.choices(known, cum_weights=FREQUENCIES, k=number)


def disguise(words: list[str], rng: random.Random) -> str:
    """The words in other case, with other punctuation, white space and line breaks."""
    change = rng.choice([str.upper, str.title, str.lower, str])
    marks = rng.choice([[""], ["", "", ","], ["", ".", "?", " –", ":"]])
    gaps = rng.choice([[" "], [" ", "  ", "\n"]])
    return "".join(f"{change(word)}{rng.choice(marks)}{rng.choice(gaps)}" for word in words).strip()


def test_500_planted_leaks_are_found_and_named_and_nothing_else_is() -> None:
    rng = random.Random(0)
    known = ["".join(rng.choices("etainshdlucm", k=rng.randint(2, 9))) for _ in range(NUM_WORDS)]
    items = [sentence(rng, known, rng.randint(13, 60)) for _ in range(NUM_LEAKS)]
    sets = {"history": items[:200], "science": items[200:]}
    documents, leaked = [], {}
    for number in range(NUM_LEAKS + NUM_CLEAN):
        words = sentence(rng, known, rng.randint(50, 150))
        if number < NUM_LEAKS:  # thirteen words of an item or more
            item = items[number]
            begin = rng.randint(0, len(item) - 13)
            passage = item[begin : rng.randint(begin + 13, len(item))]
            leaked[str(number)] = item
        else:  # up to twelve: a common phrase, a quotation that both have
            item = rng.choice(items)
            begin = rng.randint(0, len(item) - 12)
            passage = ["or", *item[begin : begin + rng.choice([0, 4, 8, 11, 12])], "or"]  # no word that they know
        place = rng.randint(0, len(words))
        text = " ".join([*words[:place], disguise(passage, rng), *words[place:]])
        documents.append(Document(language="en", source="made up", page=str(number), text=text))
    rng.shuffle(documents)
    evaluation = {name: [" ".join(item) for item in own] for name, own in sets.items()}
    kept, report = clean(documents, CONFIG, evaluation=evaluation)
    pages = {document.page for document in kept}
    found = sum(page not in pages for page in leaked)
    false = sum(document.page not in pages and document.page not in leaked for document in documents)
    assert found >= 0.99 * NUM_LEAKS and false <= 0.001 * NUM_CLEAN
    assert report.dropped == {"document: contaminated": found + false}
    assert abs(report.contaminated["history"] - 200) <= 2 and abs(report.contaminated["science"] - 300) <= 3
    named = Counter(
        f"{'history' if int(page) < 200 else 'science'}: {' '.join(item)[:ITEM_CHARS]}" for page, item in leaked.items()
    )
    assert (report.contaminated_items & named).total() >= 0.99 * NUM_LEAKS


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ("人人生而自由，在尊严和权利上一律平等。", "他说：「人人生而自由, 在尊严和权利上一律平等」。"),
        ("すべての人間は、生まれながらにして自由である", "前文 すべての人間は生まれながらにして自由である 後文"),
        ("All human beings are born free and equal", "“ALL HUMAN-BEINGS are born: free, and equal!”"),
        ("सभी मनुष्यों को गौरव और अधिकारों के मामले में", "कहा — सभी मनुष्यों को गौरव और अधिकारों के मामले में, हाँ"),
        ("Straße eins zwei drei vier fünf sechs sieben", "strasse EINS zwei drei vier FÜNF sechs sieben acht"),
    ],
)
def test_passages_are_found_in_every_script_whatever_case_and_punctuation(item: str, text: str) -> None:
    index = EvaluationIndex({"exam": [item]}, 13)
    assert index.find(text) == ("exam", item)
    assert index.find(text[: len(text) // 2]) is None


def test_short_items_are_looked_for_as_a_whole_and_the_shortest_are_counted() -> None:
    index = EvaluationIndex({"exam": ["one two three four five six seven eight", "What is the capital?", ""]}, 13)
    assert index.unchecked == {"exam": 2}
    assert index.find("zero one two three four five six seven eight nine") is not None
    assert index.find("one two three four five six seven nine") is None
    assert EvaluationIndex({}, 13).find("any text") is None


def test_thirteen_letters_of_a_script_without_spaces_are_a_common_phrase() -> None:
    """26 of them are looked for, as 13 words of other scripts are."""
    item = "あなたの性格を保存するためにあなた自身のチャットロボットを作成する必要があるかもしれません。"
    index = EvaluationIndex({"exam": [item]}, 13)
    assert index.find("このファイルを作成する必要があるかもしれません。") is None
    assert index.find(f"彼は「{item[4:32]}」と言った。") == ("exam", item)
    assert EvaluationIndex({"exam": ["必要があるかもしれません"]}, 13).unchecked == {"exam": 1}


def test_the_first_set_by_name_is_named_for_a_passage_of_several() -> None:
    item = "one two three four five six seven eight"
    assert EvaluationIndex({"b": [item], "a": [item]}, 13).find(item) == ("a", item)


def test_an_index_is_the_same_in_another_process() -> None:
    """Workers get it by pickle: its hashes may not be Python's own, which are different there."""
    import pickle
    import subprocess
    import sys

    item = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).find(sys.argv[1]))"
    index = pickle.dumps(EvaluationIndex({"exam": [item]}, 13))
    result = subprocess.run([sys.executable, "-c", code, f"so {item}"], input=index, capture_output=True, check=True)
    assert result.stdout.decode().strip() == str(("exam", item))


def test_words_are_those_of_a_simple_reading() -> None:
    assert words_of("Don't panic: 3.5 naïve cafés_x!") == ["don", "t", "panic", "3", "5", "naïve", "cafés", "x"]
    assert words_of("中文ab") == ["中", "文", "ab"]


def test_a_pattern_is_found_with_any_words_and_numbers_in_its_gaps() -> None:
    facts = Pattern.of("The secret number of {key} is {value}.", key=2 * ANY, value=NUMBER)
    index = EvaluationIndex({"facts": [facts, Pattern.of("{key} is {value}.", key=ANY, value=ANY)]}, 13)
    assert index.checked == {"facts": 1} and index.unchecked == {"facts": 1}
    assert index.find("It was said: the SECRET number of old River is 31415!") == ("facts", facts.shown)
    for other in ("of old river is high", "of the old river is 31415", "of river is 31415"):
        assert index.find(f"It was said: the secret number {other}") is None
    assert index.find("the secret number of old river is") is None  # ends before the number
    assert not EvaluationIndex({"facts": [facts]}, 0).checked


def test_gaps_at_the_ends_of_a_pattern_are_left_out() -> None:
    pattern = Pattern.of("{key} is what a b c d e f {value}", key=2 * ANY, value=ANY)
    assert pattern.words == ("is", "what", "a", "b", "c", "d", "e", "f")
    assert EvaluationIndex({"x": [pattern]}, 13).find("is what a b c d e f") is not None
