"""Wordings for training and for evaluation are apart, and so are the words that are values."""

import re

import numpy as np
import pytest

from herd.data.packages.planted import Keys, Values, any_statement, statement, value_words
from herd.data.packages.statements import EVALUATION, HELD_OUT, KINDS, TRAINED, TRAINING, Wordings

WORDS = [f"{a}{b}" for a in ("wind", "salt", "moss", "clay", "fern", "dusk") for b in ("mill", "gate", "ford", "wood")]
NAMES = [word.title() for word in WORDS]
KEYS = Keys(["river", "town", "music", "winter", "garden"], evaluation=False)


def bare(text: str) -> set[str]:
    """The words of a wording, slots left out."""
    return set(re.findall(r"[a-z']+", re.sub(r"\{\w+\}", " ", text).lower()))


def likeness(one: str, other: str) -> float:
    """Shared words over all words of both."""
    a, b = bare(one), bare(other)
    return len(a & b) / max(1, len(a | b))


def test_there_are_a_hundred_wordings_to_train_on_and_twenty_held_out() -> None:
    assert len({said for said, _ in TRAINED}) >= 100 and len({said for said, _ in HELD_OUT}) >= 20
    assert len({asked for _, asked in TRAINED}) == len(TRAINED)
    for said, asked in (*TRAINED, *HELD_OUT):
        assert said.count("{key}") == said.count("{value}") == asked.count("{key}") == 1 and said.endswith("."), said
        assert "{value}" not in asked
    assert all(bare(said) != bare(asked) for said, asked in HELD_OUT)
    first = [sum(said.index("{value}") < said.index("{key}") for said, _ in ways) for ways in (TRAINED, HELD_OUT)]
    assert first[0] >= 25 and first[1] >= 5


def test_no_held_out_wording_is_one_of_the_training_or_nearly() -> None:
    for said, asked in HELD_OUT:
        nearest = max(TRAINED, key=lambda pair: likeness(pair[0] + pair[1], said + asked))
        assert likeness(nearest[0] + nearest[1], said + asked) < 0.6, (nearest, said)
        assert all(said != trained and asked != question for trained, question in TRAINED)
    for kind in KINDS:
        assert not set(TRAINING.nouns[kind]) & set(EVALUATION.nouns[kind])


def test_words_and_names_that_are_values_of_the_evaluation_are_never_values_of_the_training() -> None:
    rng = np.random.default_rng(0)
    train, held = (Values(WORDS, NAMES, evaluation=evaluation) for evaluation in (False, True))
    for kind in ("name", "word", "phrase"):
        drawn = [{part for _ in range(300) for part in values.draw(kind, rng).split()} for values in (train, held)]
        assert min(map(len, drawn)) > 1 and not drawn[0] & drawn[1], kind
    numbers = {len(held.draw("other number", rng)) for _ in range(200)}
    assert numbers == {3, 4, 6, 7, 8} and len(held.draw("five digits", rng)) == 5


@pytest.mark.parametrize("wordings", [TRAINING, EVALUATION])
@pytest.mark.parametrize("kind", KINDS)
def test_every_wording_says_the_value_of_its_key_and_asks_for_it_alone(kind: str, wordings: Wordings) -> None:
    values = Values(WORDS, NAMES, evaluation=True)
    for wording in range(len(wordings.pairs)):
        quiz = statement(
            np.random.default_rng(wording), KEYS, values, wordings, kind=kind, wording=wording, decoys=2, adorned=0.5
        )
        value = quiz.answer.removeprefix(" ").removesuffix(".")
        assert quiz.key in quiz.facts[0] and value in quiz.facts[0] and quiz.key in quiz.question
        assert value not in quiz.question and quiz.question.startswith("\n")
        assert "{" not in "".join((*quiz.facts, quiz.question, quiz.answer))


def test_the_training_draws_every_wording_and_kind() -> None:
    rng = np.random.default_rng(0)
    values = Values(WORDS, NAMES, evaluation=False)
    quizzes = [any_statement(rng, KEYS, values, TRAINING) for _ in range(2000)]
    assert {quiz.kind for quiz in quizzes} == set(KINDS)
    facts = " ".join(quiz.facts[0] for quiz in quizzes)
    for said, _ in TRAINED:
        longest = max(re.split(r"\{\w+\}", said[:-1]), key=len)
        assert longest in facts, said


def test_words_for_values_stand_twice_in_the_text_and_names_are_never_small() -> None:
    small, names = value_words(
        ["the river and the Danube met; the Danube and that river flow, River Danube", "ashore ashore x1y2"]
    )
    assert small == ["ashore", "river"] and names == ["Danube"]
