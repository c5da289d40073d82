"""Planted facts stand whole where they were put, and questions end where their answers begin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folder import random_tokenizer

from herd.config import LANGUAGES
from herd.data.packages import planted
from herd.data.packages.planted import Keys, Planter

TOKENIZER = random_tokenizer()
PLANTER = Planter(TOKENIZER)
WORDS = ["river", "town", "music", "winter", "garden", "market", "history", "painter", "bridge", "island", "school"]
TEXT = "The cat sat on the mat. A dog came in and sat beside it.\n" * 60
FILLER = PLANTER.filler(np.array(TOKENIZER.encode(TEXT), dtype=np.int32))
KEYS = Keys(WORDS, evaluation=False)


def quizzes(seed: int) -> list[planted.Quiz]:
    rng = np.random.default_rng(seed)
    language = LANGUAGES[seed % len(LANGUAGES)]
    return [
        planted.needle(rng, KEYS, language), planted.needle(rng, KEYS, language, decoys=3),
        *planted.multi_query(rng, KEYS), planted.multi_value(rng, KEYS), planted.variable(rng, KEYS),
        planted.table(rng, KEYS), planted.counting(rng, KEYS), planted.aggregation(rng, KEYS),
        planted.ordering(rng, KEYS),
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_fact_is_whole_in_the_text_before_the_questions(seed: int) -> None:
    asked = quizzes(seed)
    document = PLANTER.plant(asked, FILLER, 2600, np.random.default_rng(seed), begin=seed % 300)
    assert len(document.ids) <= 2600
    first = min(begin for begin, _ in document.answers) - len(PLANTER.encode(asked[0].question))
    text = TOKENIZER.decode(document.ids[:first].tolist())
    facts = [fact for quiz in asked for fact in quiz.facts]
    assert all(text.count(fact) >= facts.count(fact) for fact in facts)
    at = [TOKENIZER.decode(document.ids[place : place + 400].tolist()) for place in document.facts_at]
    assert all(stands.startswith(f" {fact}") for stands, fact in zip(at, facts, strict=True))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_just_the_answers_are_learnt_and_each_follows_its_question(seed: int) -> None:
    asked = quizzes(seed)
    document = PLANTER.plant(asked, FILLER, 2600, np.random.default_rng(seed))
    learnt = np.zeros(len(document.ids), dtype=bool)
    for quiz, (begin, end) in zip(asked, document.answers, strict=True):
        assert TOKENIZER.decode(document.ids[begin:end].tolist()) == quiz.answer
        assert TOKENIZER.decode(document.ids[:begin].tolist()).endswith(quiz.question)
        learnt[begin:end] = True
    assert (learnt == (document.learnt > 0)).all()


def test_a_fact_of_a_given_depth_is_there() -> None:
    rng = np.random.default_rng(0)
    for depth in (0.05, 0.5, 0.95):
        document = PLANTER.plant([planted.needle(rng, KEYS)], FILLER, 2000, rng, depth=depth)
        assert abs(document.facts_at[0] / 2000 - depth) < 0.05


def test_keys_of_evaluation_are_never_drawn_for_training() -> None:
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in WORDS for b in WORDS]
    train, held = Keys(words, evaluation=False), Keys(words, evaluation=True)
    drawn = []
    for keys in (train, held):
        own = [keys.draw(rng) for _ in range(1500)]
        drawn.append({*own, *(keys.near(key, rng) for key in own)})
    assert not drawn[0] & drawn[1]
    assert min(map(len, drawn)) > 1000


def test_a_near_key_shares_one_word() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        key = KEYS.draw(rng)
        assert sum(a == b for a, b in zip(key.split(), KEYS.near(key, rng).split(), strict=True)) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_question_repeats_the_words_of_the_fact_up_to_the_value(language: str) -> None:
    quiz = planted.needle(np.random.default_rng(0), KEYS, language)
    assert f"{quiz.question.strip()}{quiz.answer}" == quiz.facts[0]
