"""What is asked about a novel and in an invented language has its answer in the text, and one right answer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_folder import random_tokenizer
from test_engine_reader import CHUNK, model_of, shape, tokens

from herd.data.packages.grammar import Language, translation
from herd.data.packages.novel import ASKED_WORDS, QUESTIONS, Chapter, quizzes, read_chapters
from herd.data.packages.planted import Planter, Quiz
from herd.engine.reader import Reader
from herd.evaluate.needle import Haystack

TEXTS = (
    "CHAPTER 1. Loomings.\n\nIt was a cold day. Some years ago having little money in my purse I thought I would sail "
    "about a little and see the sea. Now the long and the short of the whole of this matter was told at sea.\n\n",
    "CHAPTER 2. The Inn.\n\nIt was a cold day. There stood an inn whose landlord had a lamp and a stair and a bed "
    "of which he was very proud indeed. Now the long and the short of the whole of this matter was lost on land.\n\n",
)
NOVEL = [
    Chapter(number=n, title=title, text=text)
    for n, title, text in zip((1, 2), ("Loomings", "The Inn"), TEXTS, strict=True)
]


def test_sentences_go_on_as_in_the_novel_and_titles_are_those_of_their_chapters() -> None:
    asked = quizzes(NOVEL, np.random.default_rng(0), asks=12)
    whole = " ".join("".join(TEXTS).split())
    quoted = asked["how a sentence goes on"]
    assert quoted and all(whole.count(one.question.strip() + one.answer) == 1 for one in quoted)
    assert all(len(one.answer.split()) == ASKED_WORDS for one in quoted)
    assert not any(one.question.startswith("\nNow the long") for one in quoted)  # it goes on in two ways
    assert all(f"{one.question.strip()}{one.answer}." in whole for one in asked["title by number"])
    assert {one.answer for one in asked["number by title"]} == {" 1.", " 2."}
    assert asked["question of reading, of 4"] == []  # their chapters are not read


def test_only_chapters_that_are_whole_within_the_length_are_asked_about() -> None:
    tokenizer = random_tokenizer()
    first = len(tokenizer.encode(TEXTS[0]))
    ids, read = read_chapters(NOVEL, tokenizer, first + 5)
    assert len(ids) == first + 5 and [one.number for one in read] == [1]


def test_a_question_of_reading_has_four_names_and_needs_a_chapter_of_the_novel() -> None:
    assert all(len(set(names)) == 4 and 1 <= last <= 135 for last, _, names in QUESTIONS)


@pytest.mark.parametrize("seed", range(20))
def test_a_translation_follows_its_grammar_and_the_others_do_not(seed: int) -> None:
    quiz = translation(np.random.default_rng(seed), None)  # type: ignore[arg-type]
    assert quiz.answer == quiz.options[0] and len(set(quiz.options)) == 4
    assert len({len(option.split()) for option in quiz.options}) == 1
    language = Language(np.random.default_rng(seed))
    (book,) = quiz.facts
    assert all(f"{english} is {word}" in book for english, word in language.words.items())
    known = {*language.words.values(), *(word + language.many for word in language.words.values()), language.past}
    assert all(word in known for option in quiz.options for word in option.strip(" '").split())


def test_losses_are_those_of_a_whole_forward_and_the_cheapest_option_is_given() -> None:
    model = model_of(shape())
    text, question, answer = tokens(3 * CHUNK), tokens(4, seed=1).tolist(), tokens(9, seed=2).tolist()
    reader = Reader(model, context=6 * CHUNK)
    reader.read(text)
    found = reader.losses(question, answer, at=len(text))
    whole = torch.cat([text, torch.tensor(question), torch.tensor(answer)])
    with torch.inference_mode():
        starts = torch.tensor([0, len(whole)], dtype=torch.int32)
        hidden = model.transformer(whole, positions_N=torch.arange(len(whole)), starts_S=starts)
        logits = model.transformer.unembed(hidden)[-len(answer) - 1 : -1]
    torch.testing.assert_close(torch.tensor(found), F.cross_entropy(logits, whole[-len(answer) :], reduction="none"))


def test_an_option_is_right_where_it_is_the_likeliest() -> None:
    tokenizer = random_tokenizer()
    model = model_of(shape(vocab_size=tokenizer.vocab_size))
    reader, planter = Reader(model, context=8 * CHUNK), Planter(tokenizer)
    ids = np.array(tokenizer.encode("The cat sat on the mat. A dog came in.\n" * 60)[: 4 * CHUNK])
    reader.read(torch.from_numpy(ids))
    hay, options = Haystack(reader, planter, ids), (" a cat", " dogs", " the mat")
    question = "\nIt was"
    costs = [np.mean(reader.losses(planter.encode(question), planter.encode(one), at=len(ids))) for one in options]
    before = reader.cache.keys[-1].clone()
    for one in options:
        quiz = Quiz(kind="x", facts=(), question=question, answer=one, options=options)
        asked = hay.ask(quiz, length=len(ids), depth=0.5, rng=np.random.default_rng(0))
        assert asked.right == (one == options[int(np.argmin(costs))]) and not asked.cut
    assert torch.equal(before, reader.cache.keys[-1])  # what stood there stands again
