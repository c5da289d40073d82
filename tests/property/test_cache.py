"""A prompt read in pieces cut anywhere, beside other requests, gives the hidden states of one forward."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.config import SpecialIds, preset
from herd.model.cache import KVCache, chunk_pieces
from herd.model.transformer import Transformer

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)
CONFIG = replace(preset("tiny", vocab_size=64, special=SPECIAL), chunk_size=8, temperature_floor=3)


def random_model() -> Transformer:
    generator = torch.Generator().manual_seed(0)
    model = Transformer(CONFIG)
    for name, parameter in model.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        torch.nn.init.normal_(parameter, mean, 0.08, generator=generator)
    return model.eval().requires_grad_(False)


MODEL = random_model()


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), longest=st.integers(1, 30), seed=st.integers(0, 99)
)
def test_pieces_beside_other_requests_equal_one_forward(lengths: list[int], longest: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(10, 64, (length,), generator=generator) for length in lengths]
    cache = KVCache(CONFIG, num_slots=4, capacity=32, dtype=torch.float32, device=torch.device("cpu"))
    waiting = [chunk_pieces(0, length, CONFIG.chunk_size, longest) for length in lengths]
    parts: list[list[torch.Tensor]] = [[] for _ in prompts]
    while any(waiting):
        running = [i for i in range(len(prompts)) if waiting[i]]
        pieces = [waiting[i].pop(0) for i in running]
        positions = torch.cat([torch.arange(begin, end) for begin, end in pieces])
        sizes = torch.tensor([end - begin for begin, end in pieces])
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        hidden = MODEL(
            torch.cat([prompts[i][begin:end] for i, (begin, end) in zip(running, pieces, strict=True)]),
            positions_N=positions,
            starts_S=starts,
            cache=cache.at([3 - i for i in running], positions, starts),
        )
        for i, part in zip(running, hidden.split(sizes.tolist()), strict=True):
            parts[i].append(part)
    for prompt, pieces_of in zip(prompts, parts, strict=True):
        alone = MODEL(prompt, positions_N=torch.arange(len(prompt)), starts_S=torch.tensor([0, len(prompt)]))
        assert (torch.cat(pieces_of) - alone).abs().max() <= 1e-5


@given(begin=st.integers(0, 50), length=st.integers(0, 50), chunk=st.integers(1, 20), longest=st.integers(1, 20))
def test_pieces_cover_the_range_and_never_cross_an_edge(begin: int, length: int, chunk: int, longest: int) -> None:
    pieces = chunk_pieces(begin, begin + length, chunk, longest)
    assert [p for a, b in pieces for p in range(a, b)] == list(range(begin, begin + length))
    assert all(a // chunk == (b - 1) // chunk and b - a <= longest for a, b in pieces)
