"""Guessing ahead: it changes no answer, and what holds is as much as the theory says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_folder import random_tokenizer
from torch import Tensor

from herd.config import preset
from herd.engine.answer import Answer, advance
from herd.engine.load import Model, load
from herd.engine.sampler import SamplingParams, sample
from herd.engine.speculative import DraftModel, NGrams, num_drafts
from herd.engine.structure import Structure
from herd.errors import HerdError
from herd.model.transformer import Transformer

TOKENIZER = random_tokenizer()


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load(tiny_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def sibling(model: Model) -> Model:
    """A model that says nearly the same: the same weights, shaken."""
    network = Transformer(model.config)
    network.load_state_dict(model.transformer.state_dict())
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data += 0.002 * torch.randn(parameter.shape, generator=generator)
    return replace(model, transformer=network)


def begin(prompt: Sequence[int], params: SamplingParams, *, seed: int = 0, room: int = 1000) -> Answer:
    return Answer(params, prompt=prompt, tokenizer=TOKENIZER, end_tokens=(), room=room, seed=seed)


def put(answer: Answer, tokens: Sequence[int]) -> Answer:
    for token in tokens:
        answer.push(token, torch.zeros(1), None)
    return answer


tokens = st.lists(st.integers(0, 3), max_size=30)


@given(prompt=tokens, said=tokens, count=st.integers(1, 8))
def test_a_lookup_gives_what_followed_the_longest_known_end(prompt: list[int], said: list[int], count: int) -> None:
    ngrams, answer = NGrams(), begin(prompt, SamplingParams(max_tokens=99))
    for place in range(len(said) + 1):  # token by token, as an engine asks
        [draft] = ngrams.draft([put(answer, said[len(answer.tokens) : place])], [count])
    past = prompt + said
    wanted: list[int] = []
    for length in (4, 3, 2):
        places = [at for at in range(length, len(past)) if past[at - length : at] == past[-length:]]
        if places and len(past) > length:
            goes_on = past[:]
            while len(goes_on) < places[-1] + count:
                goes_on.append(goes_on[places[-1] + len(goes_on) - len(past)])  # into itself, in circles
            wanted = goes_on[places[-1] : places[-1] + count]
            break
    assert draft == wanted


def test_guesses_grow_with_success_and_end_at_the_chunk_and_the_limit() -> None:
    answer = put(begin([1] * 10, SamplingParams(max_tokens=20)), [2])
    assert num_drafts(answer, 8, chunk_size=64) == 2
    answer.last_accepted = 4
    assert [num_drafts(answer, most, chunk_size=64) for most in (8, 3, 0)] == [6, 3, 0]
    # Position 10 is read with the drafts behind it; a chunk of 12 ends with position 11.
    assert [num_drafts(answer, 8, chunk_size=size) for size in (11, 12, 13)] == [0, 1, 2]
    assert num_drafts(put(answer, [2] * 17), 8, chunk_size=64) == 1  # two more: one drafted, one drawn


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("with_draft_model", [False, True])
def test_an_engine_that_guesses_answers_as_one_that_does_not(
    model: Model, sibling: Model, temperature: float, with_draft_model: bool
) -> None:
    texts = ["the cat", "der Hund " * 15, "mat mat mat mat", "ねこ"]
    asked = [model.render([{"role": "user", "content": text}]) for text in texts]
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=5, repetition_penalty=1.05)
    plain = model.engine(max_num_seqs=3, max_model_len=700)
    guessing = model.engine(
        max_num_seqs=3, max_model_len=700, num_speculative_tokens=5, draft_model=sibling if with_draft_model else None
    )
    wanted = plain.generate_batch(asked, params)
    got = guessing.generate_batch(asked, params)
    stats = guessing.stats()
    plain.close()
    guessing.close()
    assert got == wanted
    assert stats["drafted"] > 20 or not with_draft_model
    if with_draft_model:
        assert stats["accepted"] > 0.3 * stats["drafted"]


def test_drafts_across_a_chunk_edge_change_nothing(tiny_folder: Path) -> None:
    whole = load(tiny_folder, dtype=torch.float32)
    config = replace(whole.config, chunk_size=32, max_positions=200)
    network = Transformer(config)
    network.load_state_dict(whole.transformer.state_dict())
    small = replace(whole, config=config, transformer=network)
    prompt = small.render([{"role": "user", "content": "the cat sat"}])
    params = SamplingParams(
        max_tokens=100, temperature=1.0, seed=1, logit_bias=dict.fromkeys(config.special.stop, -100.0)
    )
    wanted = None
    # The draft model is the model: every guess holds, but for what the edges forbid.
    for options in ({}, {"num_speculative_tokens": 6, "draft_model": small}, {"num_speculative_tokens": 6}):
        engine = small.engine(max_num_seqs=2, max_model_len=190, **options)
        answer = engine.generate_batch([prompt, prompt], params)
        stats = engine.stats()
        engine.close()
        wanted = wanted or answer
        assert answer == wanted
        if "draft" in options:
            assert stats["accepted"] > 0.9 * stats["drafted"] > 0


def test_a_form_without_choice_is_guessed(model: Model) -> None:
    engine = model.engine(max_num_seqs=1, max_model_len=300, num_speculative_tokens=6)
    form = Structure.from_schema({"const": {"the cat sat on the mat": "der Hund"}})
    prompt = model.render([{"role": "user", "content": "?"}])
    [text] = engine.generate_batch([prompt], SamplingParams(max_tokens=80, structure=form))
    stats = engine.stats()
    engine.close()
    assert "the cat sat on the mat" in text and stats["accepted"] >= 5


# Two models over six tokens: the next one depends on the last. Tokens 0 … 5 of the vocabulary, the others never.
SMALL = 6


def transitions(seed: int, spread: float) -> Tensor:
    return torch.randn(SMALL, SMALL, generator=torch.Generator().manual_seed(seed)) * spread


def padded(logits_BV: Tensor) -> Tensor:
    full = torch.full((len(logits_BV), TOKENIZER.vocab_size), -torch.inf)
    full[:, :SMALL] = logits_BV
    return full


def test_answers_with_drafts_are_distributed_as_the_model_says() -> None:
    """Chi-square over all answers of three tokens, drafted by another model with the same noise, by fixed seeds."""
    target, drafter = transitions(1, 1.0), transitions(2, 1.0)
    params = SamplingParams(max_tokens=3, temperature=0.8)
    seen: Counter[tuple[int, ...]] = Counter()
    answers = [begin([0], params, seed=seed) for seed in range(6000)]
    while going := [answer for answer in answers if answer.finish_reason is None]:
        guesses: list[list[int]] = [[] for _ in going]
        for _ in range(2):
            last = [(answer.tokens + guess or [0])[-1] for answer, guess in zip(going, guesses, strict=True)]
            rows = [answer.row(ahead=guess) for answer, guess in zip(going, guesses, strict=True)]
            for guess, token in zip(guesses, sample(padded(drafter[last]), rows).tokens, strict=True):
                guess.append(token)
        guesses = [guess[: answer.room - 1] for answer, guess in zip(going, guesses, strict=True)]
        behind = [
            token
            for answer, guess in zip(going, guesses, strict=True)
            for token in [(answer.tokens or [0])[-1], *guess]
        ]
        advance(going, padded(target[behind]), guesses)
    for answer in answers:
        seen[tuple(answer.tokens)] += 1
    share = torch.softmax(target.double() / 0.8, -1)
    distance, cells, rest_seen, rest_expected = 0.0, 0, 0, 0.0
    for a in range(SMALL):
        for b in range(SMALL):
            for c in range(SMALL):
                expected = float(share[0, a] * share[a, b] * share[b, c]) * len(answers)
                if expected < 5:  # too few for the approximation: put together
                    rest_seen, rest_expected = rest_seen + seen[a, b, c], rest_expected + expected
                else:
                    distance, cells = distance + (seen[a, b, c] - expected) ** 2 / expected, cells + 1
    distance += (rest_seen - rest_expected) ** 2 / rest_expected
    p = torch.special.gammaincc(torch.tensor(cells / 2).double(), torch.tensor(distance / 2).double())
    assert cells > 60 and float(p) > 1e-3
    accepted, drafted = (sum(getattr(a, name) for a in answers) for name in ("num_accepted", "num_drafted"))
    assert 0.2 < accepted / drafted < 0.9


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_drafts_with_the_same_noise_hold_as_often_as_the_theory_says(spread: float) -> None:
    target, drafter = transitions(5, spread)[:1], transitions(6, spread)[:1]
    rows = [begin([0], SamplingParams(temperature=1.0), seed=seed).row() for seed in range(3000)]
    drawn, guessed = (sample(padded(logits).expand(3000, -1), rows).tokens for logits in (target, drafter))
    apart = float((torch.softmax(target, -1) - torch.softmax(drafter, -1)).abs().sum() / 2)
    held = sum(a == b for a, b in zip(drawn, guessed, strict=True)) / 3000
    noise = 4 * 0.5 / 3000**0.5
    assert (1 - apart) / (1 + apart) - noise < held < 1 - apart + noise


def test_a_draft_model_of_another_tokenizer_is_refused(model: Model) -> None:
    shape = replace(preset("tiny", vocab_size=500, special=model.config.special), vision=None)
    other = replace(model, config=shape)
    with pytest.raises(HerdError, match="another tokenizer"):
        DraftModel(other, model, max_num_seqs=1, max_model_len=64)
    with pytest.raises(HerdError, match="num_speculative_tokens=0"):
        model.engine(draft_model=model)
