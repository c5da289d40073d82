"""The reader of long texts: what it answers is what whole forwards answer, wherever and however the text came in."""

from dataclasses import replace

import pytest
import torch
from model_folder import random_tokenizer

from herd.bench.oracles import random_model
from herd.config import ModelConfig, MoEConfig, SpecialIds, preset
from herd.data.media.image import ImageProcessor
from herd.engine.load import Model
from herd.engine.reader import Reader
from herd.errors import HerdError

CHUNK = 32
SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5)


def shape(num_layers: int = 4, **changes: object) -> ModelConfig:
    small = replace(
        preset("tiny", vocab_size=64, special=SPECIAL), dim=32, head_dim=16, num_layers=num_layers, vision=None,
        moe=MoEConfig(num_experts=4, ffn_dim=32), chunk_size=CHUNK, temperature_floor=16, temperature_scale=0.3,
    )  # fmt: skip
    return replace(small, **changes)  # type: ignore[arg-type]


def model_of(config: ModelConfig) -> Model:
    return Model(
        config=config,
        transformer=random_model(config, seed=0, scale=0.4),
        tokenizer=random_tokenizer(),
        processor=ImageProcessor(None),
    )


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(9, 64, (count,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def by_whole_forwards(model: Model, ids: list[int], count: int) -> list[int]:
    given: list[int] = []
    for _ in range(count):
        now = torch.tensor(ids + given)
        starts = torch.tensor([0, len(now)], dtype=torch.int32)
        hidden = model.transformer(now, positions_N=torch.arange(len(now)), starts_S=starts)
        given.append(int(model.transformer.unembed(hidden[-1:]).argmax()))
    return given


@pytest.mark.parametrize("num_layers", [4, 8])
@pytest.mark.parametrize("num_chunks", [1, 4, 11])
def test_an_answer_after_a_long_text_is_that_of_whole_forwards(num_layers: int, num_chunks: int) -> None:
    """Also with eight layers, of which the fourth is global too."""
    model = model_of(shape(num_layers))
    text, question = tokens(num_chunks * CHUNK), tokens(7, seed=1).tolist()
    reader = Reader(model, context=num_chunks * CHUNK + 50)
    reader.read(text)
    answer = reader.answer(question, at=len(text), max_tokens=28)  # over the next chunk edge
    assert answer == by_whole_forwards(model, text.tolist() + question, 28)


def test_following_an_answer_finds_whether_it_is_the_greedy_one() -> None:
    model = model_of(shape())
    text, question = tokens(5 * CHUNK), tokens(7, seed=1).tolist()
    reader = Reader(model, context=7 * CHUNK)
    reader.read(text)
    answer = reader.answer(question, at=len(text), max_tokens=9)
    assert reader.likeliest_tokens(question, answer, at=len(text)) == answer
    other = [*answer[:4], (answer[4] + 1) % 64, *answer[5:]]
    assert reader.likeliest_tokens(question, other, at=len(text))[:5] == answer[:5]


def test_a_question_in_the_midst_sees_nothing_of_what_follows() -> None:
    model = model_of(shape())
    text, question = tokens(9 * CHUNK), tokens(5, seed=1).tolist()
    reader = Reader(model, context=len(text))
    reader.read(text)
    for at in (5, 2):
        with reader.preserve_pages([at]):
            answer = reader.answer(question, at=at * CHUNK, max_tokens=6)
        assert answer == by_whole_forwards(model, text[: at * CHUNK].tolist() + question, 6)
    question = tokens(3, seed=2).tolist()
    with reader.preserve_pages([8]):
        answer = reader.answer(question, at=8 * CHUNK, max_tokens=6)
    assert answer == by_whole_forwards(model, text[: 8 * CHUNK].tolist() + question, 6)


def test_text_replaced_in_place_is_as_if_it_had_been_there_from_the_start() -> None:
    model = model_of(shape())
    text, questions = tokens(8 * CHUNK), [tokens(5, seed=seed).tolist() for seed in range(4)]
    reader = Reader(model, context=10 * CHUNK)
    assert reader.is_linear
    reader.read(text)
    plain = [reader.answer(question, at=len(text), max_tokens=4) for question in questions]
    other = text.clone()
    other[2 * CHUNK : 5 * CHUNK] = tokens(3 * CHUNK, seed=9)
    with reader.preserve_pages([2, 3, 4]):
        reader.read(other[2 * CHUNK : 5 * CHUNK], begin=2 * CHUNK)
        replaced = [reader.answer(question, at=len(text), max_tokens=4) for question in questions]
    assert replaced == [by_whole_forwards(model, other.tolist() + question, 4) for question in questions]
    assert replaced != plain
    assert [reader.answer(question, at=len(text), max_tokens=4) for question in questions] == plain


def test_with_a_global_layer_below_the_last_text_cannot_be_replaced() -> None:
    assert not Reader(model_of(shape(8)), context=2 * CHUNK).is_linear


def test_a_text_that_the_budget_does_not_hold_is_refused_before_reading_with_the_sum() -> None:
    model = model_of(shape())
    with pytest.raises(HerdError, match=r"1,000,000 tokens need 128.01 MB of cache, 100.00 MB are given"):
        Reader(model, context=1_000_000, budget_bytes=100_000_000)


def test_reading_stops_when_it_is_asked_to() -> None:
    reader = Reader(model_of(shape()), context=100 * CHUNK)
    heard: list[int] = []

    def reported(count: int) -> bool:
        heard.append(count)
        return len(heard) < 3

    reader.read(tokens(100 * CHUNK), on_progress=reported)
    assert len(heard) == 3
    assert reader.length == sum(heard) < 100 * CHUNK


def test_answers_that_leave_pages_unread_are_the_exact_ones_where_little_may_be_left() -> None:
    """Over the edge of a page: the newest tokens stand outside of what was arranged."""
    model = model_of(shape())
    text, question = tokens(40 * CHUNK), tokens(5, seed=1).tolist()
    reader = Reader(model, context=44 * CHUNK)
    reader.read(text)
    reader.arrange()
    exact = reader.answer(question, at=len(text), max_tokens=2 * CHUNK)
    assert reader.answer(question, at=len(text), max_tokens=2 * CHUNK, epsilon=1e-9) == exact
    assert len(reader.certificates) == 2 * CHUNK
    assert all(certificate.unread <= 1e-9 for certificate in reader.certificates)


def test_what_was_arranged_is_not_used_for_a_text_that_has_changed() -> None:
    reader = Reader(model_of(shape()), context=44 * CHUNK)
    reader.read(tokens(40 * CHUNK))
    with pytest.raises(HerdError, match="call `arrange` before an epsilon"):
        reader.answer([1, 2], at=40 * CHUNK, max_tokens=1, epsilon=1e-3)
    reader.arrange()
    with reader.preserve_pages([40]):
        reader.answer([1, 2], at=40 * CHUNK, max_tokens=1, epsilon=1e-3)
    reader.answer([1, 2], at=40 * CHUNK, max_tokens=1, epsilon=1e-3)
    reader.read(tokens(CHUNK, seed=1), begin=3 * CHUNK)
    with pytest.raises(HerdError, match="call `arrange` before an epsilon"):
        reader.answer([1, 2], at=40 * CHUNK, max_tokens=1, epsilon=1e-3)


@pytest.mark.slow
def test_decoding_equals_prefill_after_65_536_tokens() -> None:
    """The 65,537th token, read and decoded, has the hidden state of one plain forward over all of them."""
    model = model_of(shape(chunk_size=8192, temperature_floor=8192))
    ids = tokens(65_537)
    reader = Reader(model, context=66_000)
    reader.read(ids[:-1])
    with torch.inference_mode():
        starts = torch.tensor([0, len(ids)], dtype=torch.int32)
        hidden = model.transformer(ids, positions_N=torch.arange(len(ids)), starts_S=starts)[-1:]
        whole = model.transformer.unembed(hidden)[0]
        decoded = reader._logits(int(ids[-1]), len(ids) - 1)
    assert torch.allclose(decoded, whole, atol=1e-4)
