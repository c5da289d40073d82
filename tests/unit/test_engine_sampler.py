"""The draw of a token: slow references, transformers' processors, and what may not depend on the company."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd.engine import sampler
from herd.engine.sampler import (
    Row,
    SamplingParams,
    adjust_logits,
    choice_seeds,
    filter_logits,
    log_probabilities,
    sample,
)
from herd.errors import HerdError

# Few distinct values, so that equal ones are met.
logit_lists = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 2.5]) | st.floats(-8, 8), min_size=1, max_size=12)
filters = st.fixed_dictionaries(
    {
        "top_k": st.integers(0, 14),
        "top_p": st.floats(0.01, 1.0),
        "min_p": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        "temperature": st.sampled_from([0.3, 1.0, 2.0]),
    }
)


def row(params: SamplingParams, *, seed: int = 0, said: tuple[int, ...] = (), prompt: tuple[int, ...] = ()) -> Row:
    distinct = torch.tensor(sorted(set(prompt)), dtype=torch.int64)
    return Row(params=params, seed=seed, place=len(said), counts=Counter(said), prompt=distinct)


def chi_square_p(seen: Tensor, expected: Tensor) -> float:
    """How likely counts at least as far from the expected ones are."""
    distance = ((seen - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2).double(), distance / 2))


def kept(scores_V: Tensor) -> set[int]:
    return {i for i, score in enumerate(scores_V.tolist()) if score != -math.inf}


def kept_by_hand(logits: list[float], params: SamplingParams) -> tuple[set[int], set[int]]:
    """The tokens that the words of the definitions keep, once with a nucleus a hair smaller, once a hair larger."""
    both = []
    for hair in (-1e-5, 1e-5):
        left = sorted(logits, reverse=True)[: params.top_k or None]
        total = sum(math.exp(value) for value in left)
        before, nucleus = 0.0, []
        for value in left:
            if params.top_p == 1 or not nucleus or before < params.top_p + hair:
                nucleus.append(value)
            before += math.exp(value) / total
        least = max(nucleus[-1], max(logits) + math.log(params.min_p) - hair if params.min_p else -math.inf)
        both.append({i for i, value in enumerate(logits) if value >= least})
    return both[0], both[1]


@given(logits=logit_lists, given_filters=filters)
def test_what_the_filters_leave_is_what_their_words_say(logits: list[float], given_filters: dict[str, Any]) -> None:
    params = SamplingParams(**given_filters)
    values = torch.tensor(logits)
    fewest, most = kept_by_hand(values.tolist(), params)
    assert fewest <= kept(filter_logits(values[None].clone(), [params])[0]) <= most


@pytest.mark.parametrize("size", [50, 3000])
@pytest.mark.parametrize("spread", [0.05, 3.0])
def test_the_filters_are_those_of_transformers(size: int, spread: float) -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(4, size, generator=torch.Generator().manual_seed(size)) * spread
    for top_k, top_p, min_p in [(0, 0.9, 0.0), (7, 1.0, 0.0), (40, 0.5, 0.3), (0, 1.0, 0.6), (0, 0.999, 0.01)]:
        params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
        steps = [TemperatureLogitsWarper(0.7), *([TopKLogitsWarper(top_k)] if top_k else [])]
        theirs = logits
        for step in [*steps, TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]:
            theirs = step(None, theirs)
        ours = filter_logits(logits / 0.7, [params] * 4)
        # A share that fills the nucleus to the last bit may fall on either side.
        assert all(len(kept(a) ^ kept(b)) <= 1 for a, b in zip(ours, theirs, strict=True)), params
        assert sum(len(kept(a) ^ kept(b)) for a, b in zip(ours, theirs, strict=True)) <= 1


def test_a_nucleus_wider_than_what_is_sorted_at_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) * 0.1
    params = [SamplingParams(temperature=1.0, top_p=p) for p in (0.01, 0.5, 0.97)]
    wanted = filter_logits(logits.clone(), params)
    monkeypatch.setattr(sampler, "LIKELIEST", 10)
    assert torch.equal(filter_logits(logits.clone(), params), wanted)
    assert [len(kept(row)) for row in wanted] == sorted(len(kept(row)) for row in wanted)


@given(
    logits=st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    prompt=st.lists(st.integers(0, 5), max_size=5),
    said=st.lists(st.integers(0, 5), max_size=8),
    repetition=st.floats(0.5, 2.0),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, 5), st.floats(-100, 100), max_size=3),
)
def test_biases_and_penalties_change_each_logit_as_defined(
    logits: list[float],
    prompt: list[int],
    said: list[int],
    repetition: float,
    frequency: float,
    presence: float,
    bias: dict[int, float],
) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    params = SamplingParams(
        repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence, logit_bias=bias
    )
    before = torch.tensor([logits])
    ours = adjust_logits(before, [row(params, prompt=tuple(prompt), said=tuple(said))])[0]
    biased = [value + bias.get(i, 0.0) for i, value in enumerate(before[0].tolist())]
    process = RepetitionPenaltyLogitsProcessor(repetition)
    repeated = process(torch.tensor([prompt + said]).long(), torch.tensor([biased]))[0]
    wanted = [v - frequency * said.count(i) - presence * (i in said) for i, v in enumerate(repeated.tolist())]
    assert ours.tolist() == pytest.approx(wanted, abs=1e-3)
    assert torch.equal(before, torch.tensor([logits]))


def test_what_is_drawn_follows_the_probabilities_that_the_filters_leave() -> None:
    logits = torch.tensor([1.0, 0.2, -0.5, 2.0, -3.0, 0.0])
    for params in [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.6, top_p=0.9),
        SamplingParams(temperature=1.5, top_k=3, logit_bias={4: 3.0}, presence_penalty=0.5),
    ]:
        rows = [row(params, seed=seed, said=(1,)) for seed in range(3_000)]
        seen = torch.bincount(torch.tensor(sample(logits.expand(len(rows), -1), rows).tokens), minlength=6)
        scores = filter_logits(adjust_logits(logits[None], rows[:1]) / params.temperature, [params])[0]
        expected = torch.softmax(scores.double(), -1) * len(rows)
        possible = expected > 0
        assert not seen[~possible].any()
        assert chi_square_p(seen[possible], expected[possible]) > 1e-3


@settings(max_examples=30)
@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6), data=st.data())
def test_a_row_draws_the_same_alone_as_in_company(seeds: list[int], data: st.DataObject) -> None:
    logits = torch.randn(len(seeds), 40, generator=torch.Generator().manual_seed(seeds[0] % 1000))
    rows = [
        row(
            SamplingParams(**data.draw(filters), repetition_penalty=data.draw(st.sampled_from([1.0, 1.3]))),
            seed=seed,
            prompt=(3, 4),
            said=(5,) * data.draw(st.integers(0, 3)),
        )
        for seed in seeds
    ]
    assert sample(logits, rows).tokens == [sample(logits[i : i + 1], [rows[i]]).tokens[0] for i in range(len(rows))]


def test_top_p_of_zero_draws_the_likeliest() -> None:
    logits = torch.randn(3, 2000)
    rows = [row(SamplingParams(temperature=2.0, top_p=0.0), seed=seed) for seed in range(3)]
    assert sample(logits, rows).tokens == logits.argmax(-1).tolist()


def test_each_place_and_each_choice_has_noise_of_its_own() -> None:
    params, logits = SamplingParams(temperature=1.0), torch.zeros(1, 1000)
    places = [sample(logits, [row(params, seed=7, said=(1,) * n)]).tokens[0] for n in range(20)]
    choices = [sample(logits, [row(params, seed=seed)]).tokens[0] for seed in choice_seeds(7, 20)]
    assert len(set(places)) > 15 and len(set(choices)) > 15
    assert choices[0] == places[0]  # the first choice is what the seed alone gives
    assert choice_seeds(7, 3) == choice_seeds(7, 20)[:3]


def test_temperature_zero_takes_the_likeliest_among_drawing_neighbours() -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(1))
    drawing = SamplingParams(temperature=5.0)
    tokens = sample(logits, [row(drawing), row(SamplingParams(top_k=5, top_p=0.1)), row(drawing, seed=2)]).tokens
    assert tokens[1] == int(logits[1].argmax())


def test_log_probabilities_are_those_of_the_model_and_its_likeliest_tokens() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(2))
    logprob, top = log_probabilities(logits, 17, 3)
    wanted = torch.log_softmax(logits.double(), -1)
    assert logprob == pytest.approx(float(wanted[17]), abs=1e-6)
    assert [token for token, _ in top] == wanted.argsort(descending=True)[:3].tolist()
    assert [value for _, value in top] == pytest.approx(wanted.sort(descending=True).values[:3].tolist(), abs=1e-6)
    assert log_probabilities(logits, 17, 0) == (logprob, [])


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"top_p": -0.1},
        {"top_p": 1.5},
        {"top_k": -3},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": 2.5},
        {"presence_penalty": -3.0},
        {"logprobs": 21},
        {"logit_bias": {5: 101.0}},
        {"logit_bias": {-1: 1.0}},
        {"stop": ("a", "")},
        {"stop": ("x",) * 17},
        {"temperature": math.nan},
    ],
)
def test_senseless_sampling_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(HerdError, match=next(iter(bad))):
        SamplingParams(**bad)
