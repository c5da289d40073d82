"""`herd bench parity`: our logits beside transformers' and Meta's own, fp32, random weights, small shapes.

The first rows give each implementation's distance to the other two on one prefill: all compute the same function. The
rows called `alone` give each one's distance to its own prefill of a single request, when the same request
is decoded token by token, packed behind another one or padded: there the peers go wrong. Nothing is downloaded.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from herd.bench.oracles import (
    OracleRequest,
    meta_peer,
    meta_world,
    ours,
    random_model,
    random_request,
    to_meta,
    to_transformers,
    transformers_peer,
)
from herd.bench.table import Row, show
from herd.config import ModelConfig, MoEConfig, RopeScaling, SpecialIds, VisionConfig
from herd.errors import HerdError
from herd.model.cache import Slots
from herd.model.pack import pack_sequences
from herd.model.transformer import Transformer

BOUND = 1e-5
"""Largest difference of two logits in fp32 that is rounding: the logits here are about 0.5, of some ten layers."""
TRANSFORMERS, META = "transformers", "llama-models"

SCOUT_LIKE = ModelConfig(
    vocab_size=256,
    special=SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8),
    dim=64,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    dense_ffn_dim=128,
    moe=MoEConfig(num_experts=4, ffn_dim=64),
    vision=VisionConfig(image_size=32, patch_size=4, dim=32, num_layers=2, num_heads=2, adapter_dim=48),
    chunk_size=16,
    temperature_floor=4,
    rope_scaling=RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=8192),
)
MAVERICK_LIKE = replace(SCOUT_LIKE, moe=MoEConfig(num_experts=8, ffn_dim=64, every=2), qk_norm=False, rope_scaling=None)

# A request is runs of text, each followed by a picture of so many (rows, columns) of tiles.
Shape = tuple[list[int], list[tuple[int, int]]]
TEXT: Shape = ([70], [])
TOP_2 = MoEConfig(num_experts=4, ffn_dim=64, top_k=2)
CASES: dict[str, tuple[ModelConfig, list[Shape]]] = {
    "Scout-like, text over four chunk edges": (SCOUT_LIKE, [TEXT]),
    "Maverick-like, text over four chunk edges": (MAVERICK_LIKE, [TEXT]),
    "Scout-like, one tile": (SCOUT_LIKE, [([9, 40], [(1, 1)])]),
    "Maverick-like, a picture of 2 x 3 tiles": (MAVERICK_LIKE, [([9, 40], [(2, 3)])]),
    "Scout-like, pictures of three shapes": (SCOUT_LIKE, [([3, 11, 2, 20], [(1, 1), (2, 2), (1, 3)])]),
    "Scout-like, five frames of a video": (SCOUT_LIKE, [([6, 2, 2, 2, 2, 30], [(1, 1)] * 5)]),
    "top 2 of 4": (replace(SCOUT_LIKE, moe=TOP_2), [TEXT]),
    "top 2 of 4 and dense layers": (replace(MAVERICK_LIKE, moe=replace(TOP_2, every=2)), [TEXT]),
    "without temperature": (replace(SCOUT_LIKE, temperature_tuning=False), [TEXT]),
    "seven requests packed by us, alone with the peers": (
        SCOUT_LIKE,
        [([1], []), ([33], []), ([5, 18], [(1, 1)]), ([16], []), ([64], []), ([2], [(2, 1)]), ([17], [])],
    ),
}


def parity(*, as_json: bool) -> None:
    """Measure and print; a difference over BOUND between prefills is an error."""
    try:
        import llama_models  # noqa: F401
        from transformers.utils import logging

        logging.set_verbosity_error()
    except ImportError as error:
        raise HerdError(f"{error.name} is missing: pip install 'herd-lm[oracle]'") from None
    rows = []
    with meta_world():
        for number, (case, (config, shapes)) in enumerate(CASES.items()):
            requests = [random_request(config, *shape, seed=number * 100 + i) for i, shape in enumerate(shapes)]
            rows += compare(case, random_model(config, seed=number), requests)
        worst = max(row.ours for row in rows)
        rows += alone()
    show(rows, as_json=as_json)
    if worst > BOUND:
        raise HerdError(f"a logit differs by {worst:.1e} from a peer's, over {BOUND:.0e}: the forward is not Llama 4's")


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference between logits."""
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))


def compare(case: str, model: Transformer, requests: list[OracleRequest]) -> list[Row]:
    """Distances between ours, packed, and the two peers', each request alone."""
    longest = max(len(request.tokens_N) for request in requests)
    packed = ours(model, requests)
    in_hf, in_reference = (
        [peer(request) for request in requests] for peer in (transformers_peer(model), meta_peer(model, longest))
    )
    between = distance(in_hf, in_reference)
    return [
        Row(case=case, unit=f"max |Δlogit| to {name}", ours=distance(packed, theirs), peer=between, peer_name=other)
        for name, theirs, other in ((TRANSFORMERS, in_hf, META), (META, in_reference, TRANSFORMERS))
    ]


@torch.inference_mode()
def decode(model: Transformer, request: OracleRequest) -> Tensor:
    """Logits [N, V] of a request without pictures that is fed to the cache token by token."""
    count = len(request.tokens_N)
    cache = Slots(model.config, num_slots=1, capacity=count, dtype=torch.float32, device=torch.device("cpu"))
    rows = []
    for i in range(count):
        pack = pack_sequences([request.tokens_N[i : i + 1]], num_cached=[i])
        rows.append(model.forward_packed(pack, cache=cache.view(pack, [0])))
    return model.unembed(torch.cat(rows))


@torch.inference_mode()
def decode_in_meta(theirs: Any, request: OracleRequest) -> Tensor:
    from llama_models.llama4.datatypes import TransformerInput

    rows = [
        theirs(TransformerInput(tokens=request.tokens_N[None, i : i + 1], tokens_position=i)).logits[0]
        for i in range(len(request.tokens_N))
    ]
    return torch.cat(rows)


@torch.inference_mode()
def decode_in_transformers(theirs: Any, request: OracleRequest) -> Tensor:
    past, rows = None, []
    for i in range(len(request.tokens_N)):
        output = theirs(input_ids=request.tokens_N[None, i : i + 1], past_key_values=past, use_cache=True)
        past = output.past_key_values
        rows.append(output.logits[0])
    return torch.cat(rows)


@torch.inference_mode()
def alone() -> list[Row]:
    """Distances of each implementation to its own prefill of one single request."""
    model = random_model(SCOUT_LIKE, seed=1)
    first, second = (random_request(SCOUT_LIKE, [size], [], seed=size) for size in (13, 60))
    count, before = len(second.tokens_N), len(first.tokens_N)
    [mine] = ours(model, [second])
    theirs, reference = to_transformers(model), to_meta(model, count)
    in_hf, in_reference = transformers_peer(model)(second), meta_peer(model, count)(second)

    joined = torch.cat([first.tokens_N, second.tokens_N])[None]
    positions = torch.cat([torch.arange(before), torch.arange(count)])[None]
    packed_in_hf = theirs(input_ids=joined, position_ids=positions, use_cache=False).logits[0, before:]
    padded = torch.cat([torch.full((before,), SCOUT_LIKE.special.pad), second.tokens_N])[None]
    mask = (torch.arange(before + count) >= before).long()[None]
    padded_positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded_in_hf = theirs(input_ids=padded, attention_mask=mask, position_ids=padded_positions, use_cache=False).logits[
        0, before:
    ]
    packed = ours(model, [first, second])[1]

    def row(case: str, ours_now: Tensor, peer_now: Tensor, peer_alone: Tensor, name: str) -> Row:
        return Row(
            case=f"alone: {case}",
            unit="max |Δlogit| to its own prefill",
            ours=distance([ours_now], [mine]),
            peer=distance([peer_now], [peer_alone]),
            peer_name=name,
        )

    stepwise = decode(model, second)
    return [
        row("decoded over three chunk edges", stepwise, decode_in_meta(reference, second), in_reference, META),
        row("decoded over three chunk edges", stepwise, decode_in_transformers(theirs, second), in_hf, TRANSFORMERS),
        row("packed behind another request", packed, packed_in_hf, in_hf, TRANSFORMERS),
        row("padded on the left (ours: packed)", packed, padded_in_hf, in_hf, TRANSFORMERS),
    ]
