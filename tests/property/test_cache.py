"""A request read in pieces cut anywhere, or token by token, beside other requests, gives the states of one forward."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd.bench.oracles import OracleRequest, ours, random_model, random_request
from herd.config import ModelConfig, MoEConfig, RopeScaling, SpecialIds, VisionConfig, preset
from herd.core.batch import Images
from herd.model.cache import Slots, chunk_pieces
from herd.model.pack import pack_sequences
from herd.model.transformer import Transformer

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)
BOUND = 1e-5
CAPACITY = 120
PLAIN = replace(
    preset("tiny", vocab_size=64, special=SPECIAL),
    dim=32,
    head_dim=8,
    num_layers=6,
    dense_ffn_dim=48,
    moe=MoEConfig(num_experts=4, ffn_dim=32),
    vision=VisionConfig(image_size=16, patch_size=4, dim=16, num_layers=1, num_heads=2, adapter_dim=24),
    chunk_size=8,
    temperature_floor=3,
)
SCALING = RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=64)
SHAPES = {
    "Scout-like": replace(PLAIN, rope_scaling=SCALING),
    "Maverick-like": replace(PLAIN, moe=MoEConfig(num_experts=8, ffn_dim=32, every=2), qk_norm=False),
    "top 2, no temperature": replace(
        PLAIN, moe=MoEConfig(num_experts=4, ffn_dim=32, top_k=2), temperature_tuning=False
    ),
}
MODELS = {name: random_model(config, seed=0, scale=0.1) for name, config in SHAPES.items()}

Drawn = list[tuple[int, list[tuple[int, int]]]]
REQUESTS = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2)), max_size=2)),
    min_size=1,
    max_size=4,
)


def requests_of(config: ModelConfig, drawn: Drawn, seed: int) -> list[OracleRequest]:
    """Text, then pictures with text between them."""
    return [
        random_request(config, [text, *[3] * len(pictures)], pictures, seed=seed + i)
        for i, (text, pictures) in enumerate(drawn)
    ]


@torch.inference_mode()
def in_pieces(model: Transformer, requests: list[OracleRequest], pieces: list[list[tuple[int, int]]]) -> list[Tensor]:
    """Logits of requests whose pieces go through one cache, the first of each together, then the second of each, …"""
    config = model.config
    cache = Slots(config, num_slots=4, capacity=CAPACITY, dtype=torch.float32, device=torch.device("cpu"))
    features = [None if r.tiles is None else model.vision(r.tiles).flatten(0, 1) for r in requests]
    waiting = [list(of_one) for of_one in pieces]
    parts: list[list[Tensor]] = [[] for _ in requests]
    while any(waiting):
        running = [i for i in range(len(requests)) if waiting[i]]
        now = [(i, *waiting[i].pop(0)) for i in running]
        pack = pack_sequences(
            [requests[i].tokens_N[begin:end] for i, begin, end in now], num_cached=[begin for _, begin, _ in now]
        )
        seen = []
        for i, begin, end in now:
            of_one = features[i]
            if of_one is not None:
                is_patch = requests[i].tokens_N == config.special.patch
                before, after = int(is_patch[:begin].sum()), int(is_patch[:end].sum())
                seen.append(of_one[before:after])
        rows = torch.nonzero(pack.tokens_N == config.special.patch)[:, 0]
        images = Images(tiles=torch.cat(seen), rows=rows, encoded=True) if seen else None
        where = cache.view(pack, [3 - i for i in running])
        hidden_ND = model.forward_packed(pack, images=images, cache=where)
        for i, part in zip(running, model.unembed(hidden_ND).split(pack.lengths), strict=True):
            parts[i].append(part)
    return [torch.cat(of_one) for of_one in parts]


def furthest(some: list[Tensor], others: list[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=5, deadline=None)
@given(drawn=REQUESTS, seed=st.integers(0, 99), data=st.data())
def test_pieces_cut_anywhere_beside_other_requests_equal_one_forward_alone(
    name: str, drawn: Drawn, seed: int, data: st.DataObject
) -> None:
    model = MODELS[name]
    requests = requests_of(model.config, drawn, seed)
    pieces = []
    for request in requests:
        count = len(request.tokens_N)
        # A cut anywhere, in a picture too; the cache asks for one at every chunk edge besides.
        cuts = data.draw(st.sets(st.integers(0, count), max_size=6)) | {0, count}
        pieces.append([p for ends in pairwise(sorted(cuts)) for p in chunk_pieces(*ends, model.config.chunk_size, 99)])
    alone = [ours(model, [request])[0] for request in requests]
    assert furthest(in_pieces(model, requests, pieces), alone) <= BOUND


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=2, deadline=None)
@given(drawn=REQUESTS, seed=st.integers(0, 99))
@example(drawn=[(11, [(1, 2)]), (18, [])], seed=0)  # a picture across the edge of a chunk
def test_token_by_token_equals_one_forward_alone(name: str, drawn: Drawn, seed: int) -> None:
    model = MODELS[name]
    requests = requests_of(model.config, drawn, seed)
    steps = [[(i, i + 1) for i in range(len(request.tokens_N))] for request in requests]
    alone = [ours(model, [request])[0] for request in requests]
    assert furthest(in_pieces(model, requests, steps), alone) <= BOUND


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=8, deadline=None)
@given(drawn=REQUESTS, seed=st.integers(0, 99))
def test_packed_with_others_equals_alone(name: str, drawn: Drawn, seed: int) -> None:
    model = MODELS[name]
    requests = requests_of(model.config, drawn, seed)
    alone = [ours(model, [request])[0] for request in requests]
    assert furthest(ours(model, requests), alone) <= BOUND


@given(begin=st.integers(0, 50), length=st.integers(0, 50), chunk=st.integers(1, 20), longest=st.integers(1, 20))
def test_pieces_cover_the_range_and_never_cross_an_edge(begin: int, length: int, chunk: int, longest: int) -> None:
    pieces = chunk_pieces(begin, begin + length, chunk, longest)
    assert [p for a, b in pieces for p in range(a, b)] == list(range(begin, begin + length))
    assert all(a // chunk == (b - 1) // chunk and b - a <= longest for a, b in pieces)
