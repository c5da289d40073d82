"""A fact planted in a text already read is answered as if the text had been read with it from the start."""

import numpy as np
import torch
from model_folder import random_tokenizer
from test_engine_reader import CHUNK, by_whole_forwards, model_of, shape

from herd.config import LANGUAGES
from herd.data.packages import planted
from herd.data.packages.planted import Keys, Planter, Quiz, Values
from herd.data.packages.statements import EVALUATION, HELD_OUT, KINDS
from herd.engine.reader import Reader
from herd.evaluate.needle import DEPTHS, AnswerToQuiz, Haystack, is_right
from herd.evaluate.statements import ask_statements

TOKENIZER = random_tokenizer()
TEXT = "The cat sat on the mat. A dog came in and sat beside it.\n" * 40
KEYS = Keys(["river", "town", "music", "winter"], evaluation=True)


def test_a_planted_fact_is_answered_as_in_a_text_read_from_the_start() -> None:
    model = model_of(shape(vocab_size=TOKENIZER.vocab_size))
    planter = Planter(TOKENIZER)
    ids = np.array(TOKENIZER.encode(TEXT), dtype=np.int64)[: 24 * CHUNK]
    reader = Reader(model, context=len(ids) + 6 * CHUNK)
    reader.read(torch.from_numpy(ids))
    hay, length = Haystack(reader, planter, ids), 12 * CHUNK
    quiz = planted.needle(np.random.default_rng(0), KEYS, "en", decoys=1)
    before = [pool.clone() for pool in (*reader.cache.keys, *reader.cache.values)]
    seen = []
    follow = reader.likeliest_tokens

    def followed(question: list[int], answer: list[int], *, at: int) -> list[int]:
        seen.append((answer, follow(question, answer, at=at)))
        return seen[-1][1]

    reader.likeliest_tokens = followed  # type: ignore[method-assign]
    hay.ask(quiz, length=length, depth=0.4, rng=np.random.default_rng(1))
    facts = [planter.encode(f" {fact}") for fact in quiz.facts]
    text = ids[:length].copy()
    for place, fact in zip(hay._places(facts, length, 0.4, np.random.default_rng(1)), facts, strict=True):
        text[place : place + len(fact)] = fact
    assert all(fact in TOKENIZER.decode(text.tolist()) for fact in quiz.facts)
    ((wanted, given),) = seen
    before_it = [*text.tolist(), *planter.encode(quiz.question)]
    assert given == [by_whole_forwards(model, [*before_it, *wanted[:i]], 1)[0] for i in range(len(wanted))]
    after = [*reader.cache.keys, *reader.cache.values]
    is_global = [layer == 3 for layer in range(4)] * 2
    assert all(torch.equal(a, b) for a, b, kept in zip(before, after, is_global, strict=True) if kept)


def test_facts_lie_on_edges_of_chunks_no_more_often_than_by_chance() -> None:
    model = model_of(shape(vocab_size=TOKENIZER.vocab_size))
    length, fact = 2**16, [1] * (CHUNK // 4)
    hay = Haystack(Reader(model, context=4 * CHUNK), Planter(TOKENIZER), np.zeros(length, dtype=np.int64))
    hay.ends = np.arange(3, length, 5)
    places = [
        hay._places([fact], length, depth, np.random.default_rng(seed))[0] for depth in DEPTHS for seed in range(40)
    ]
    cut = np.mean([place // CHUNK != (place + len(fact) - 1) // CHUNK for place in places])
    assert len(set(places)) > 300 and 0.15 < cut < 0.35  # by chance 0.25
    assert all(abs(place / length - depth) < 0.02 for place, depth in zip(places, np.repeat(DEPTHS, 40), strict=True))


def test_an_answer_is_right_by_its_beginning_or_by_all_its_parts() -> None:
    rng = np.random.default_rng(0)
    quiz = planted.needle(rng, KEYS, LANGUAGES[0])
    assert is_right(quiz, quiz.answer + " And more") and not is_right(quiz, quiz.answer[:-2] + "x")
    assert not is_right(quiz, quiz.answer.removesuffix(".") + "7.")  # a longer number is another one
    several = planted.multi_value(rng, KEYS)
    assert is_right(several, ", ".join(reversed(several.several))) and not is_right(several, several.several[0])


def test_statements_are_asked_evenly_by_kind_wording_and_depth() -> None:
    class Told:
        """Notes what is asked."""

        def __init__(self) -> None:
            self.asked: list[tuple[Quiz, float]] = []

        def ask(
            self, quiz: Quiz, *, length: int, depth: float, rng: np.random.Generator, planted: bool
        ) -> AnswerToQuiz:
            self.asked.append((quiz, depth))
            return AnswerToQuiz(right=planted, given="", wanted=quiz.answer, cut=False)

    hay, values = Told(), Values(["river", "town", "music", "winter"] * 9, ["Anna", "Rome"] * 9, evaluation=True)
    values.words, values.names = ["river", "town"], ["Anna", "Rome"]
    answers = ask_statements(hay, KEYS, values, EVALUATION, 4096, 40)  # type: ignore[arg-type]
    places = [(one.kind, one.wording) for one in answers]
    assert {places.count((kind, wording)) for kind in KINDS for wording in range(len(HELD_OUT))} == {2}
    depths = [depth for _, depth in hay.asked]
    assert {depths.count(depth) for depth in DEPTHS} == {len(answers) // len(DEPTHS)}
    assert len({quiz.question for quiz, _ in hay.asked}) > 0.6 * len(answers)
    few = ask_statements(hay, KEYS, values, EVALUATION, 4096, 10)  # type: ignore[arg-type]
    assert len({one.wording for one in few}) == len(HELD_OUT)
