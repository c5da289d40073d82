"""Our logits beside transformers' and the prefill of Meta's reference, fp32, over drawn shapes: at most 1e-5 apart.

Requests are packed by us and stand alone with the peers. The reference runs in this process, without a network.
"""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.bench import parity
from herd.bench.oracles import meta_peer, meta_world, ours, random_model, random_request, transformers_peer
from herd.config import ModelConfig, MoEConfig, RopeScaling, SpecialIds, VisionConfig

pytest.importorskip("llama_models")
pytest.importorskip("fairscale")
pytest.importorskip("transformers")

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)


@pytest.fixture(scope="module")
def meta() -> Iterator[None]:
    with meta_world():
        yield


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Anything that the reference can be: it has no head width of its own, and scales RoPE from 8192 positions only."""
    kv_heads, ratio, head_dim = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 5])), 8
    heads = kv_heads * ratio
    experts = draw(st.integers(2, 6))
    high = draw(st.sampled_from([1.0, 4.0]))
    scaling = RopeScaling(
        factor=draw(st.sampled_from([8.0, 16.0])),
        low_freq_factor=1.0,
        high_freq_factor=high,
        original_max_positions=8192,
    )
    return ModelConfig(
        vocab_size=64,
        special=SPECIAL,
        dim=heads * head_dim,
        num_layers=draw(st.integers(1, 6)),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        dense_ffn_dim=draw(st.sampled_from([24, 40])),
        moe=MoEConfig(
            num_experts=experts,
            ffn_dim=draw(st.sampled_from([16, 24])),
            top_k=draw(st.integers(1, 2)),
            every=draw(st.integers(1, 3)),
        ),
        vision=VisionConfig(
            image_size=8 * draw(st.integers(1, 2)),
            patch_size=draw(st.sampled_from([2, 4])),
            dim=16,
            num_layers=draw(st.integers(1, 2)),
            num_heads=2,
            adapter_dim=24,
        ),
        nope_every=draw(st.integers(2, 4)),
        chunk_size=draw(st.integers(3, 12)),
        qk_norm=draw(st.booleans()),
        temperature_tuning=draw(st.booleans()),
        temperature_floor=draw(st.integers(1, 6)),
        temperature_scale=draw(st.sampled_from([0.1, 0.5])),
        rope_theta=draw(st.sampled_from([1e4, 5e5])),
        rope_scaling=draw(st.sampled_from([None, scaling])),
    )


PICTURES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=3)
REQUESTS = st.lists(st.tuples(st.integers(1, 30), PICTURES), max_size=3)


def agree(config: ModelConfig, drawn: list[tuple[int, list[tuple[int, int]]]], seed: int) -> None:
    """Both peers, on a request over three chunk edges and the drawn ones."""
    shapes = [(3 * config.chunk_size + 1, []), *drawn]
    requests = [
        random_request(config, [text, *[2 + seed % 5] * len(pictures)], pictures, seed=seed + i)
        for i, (text, pictures) in enumerate(shapes)
    ]
    model = random_model(config, seed, scale=0.1)
    longest = max(len(request.tokens_N) for request in requests)
    packed = ours(model, requests)
    for name, peer in (("transformers", transformers_peer(model)), ("Meta", meta_peer(model, longest))):
        assert parity.distance(packed, [peer(request) for request in requests]) <= parity.BOUND, name


@pytest.mark.usefixtures("meta")
@settings(max_examples=8, deadline=None, derandomize=True)
@given(config=configs(), drawn=REQUESTS, seed=st.integers(0, 999))
def test_logits_equal_both_peers_whatever_the_shape(
    config: ModelConfig, drawn: list[tuple[int, list[tuple[int, int]]]], seed: int
) -> None:
    agree(config, drawn, seed)


@pytest.mark.slow
@pytest.mark.usefixtures("meta")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(config=configs(), drawn=REQUESTS, seed=st.integers(0, 9999))
def test_logits_equal_both_peers_over_hundreds_of_shapes(
    config: ModelConfig, drawn: list[tuple[int, list[tuple[int, int]]]], seed: int
) -> None:
    agree(config, drawn, seed)


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("case", parity.CASES)
def test_a_named_case_agrees_with_both_peers(case: str) -> None:
    config, shapes = parity.CASES[case]
    requests = [random_request(config, *shape, seed=i) for i, shape in enumerate(shapes)]
    assert all(row.ours <= parity.BOUND for row in parity.compare(case, random_model(config, 0), requests))
