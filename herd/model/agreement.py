"""Whether the native forward computes what herd/model defines, checked on a few tokens when a model is opened.

The model is written twice, in PyTorch (attention.py, moe.py, transformer.py) and in C++ (herd/native/forward.cpp); a
change of one that the other has not is found here, in the layer where it is. Each layer gets the same input in both,
the PyTorch model's: so rounding does not add up from layer to layer. What may differ is measured, not guessed: by how
much a layer's output moves when its input is changed by a rounding of the model's own precision. A token near a tie of
the router may visit another expert in either, so the median token of each sequence counts, not the worst.

One sequence begins at position 0, another where the temperature of global layers has grown. Left out: longer contexts,
pictures, and the weights of experts that none of the tokens visits.
"""

# N tokens, C copies of them, D width, V vocabulary

import torch
from torch import Tensor

from herd.config import ModelConfig
from herd.errors import HerdError
from herd.model.attention import plan_attention
from herd.model.cache import CacheView, KVCache
from herd.model.fused import FusedForward
from herd.model.pack import Pack, pack_sequences
from herd.model.transformer import Layer, Transformer

NEAR, FAR = 8, 4
"""Tokens of the two sequences."""
COPIES = 3
"""Of each sequence: as it is, and with a rounding's noise."""
MARGIN = 2.0
"""How often the noise's effect, and …"""
ROUNDINGS = 3.0
"""… how many units of rounding of the whole state the two may be apart."""


@torch.inference_mode()
def check_agreement(transformer: Transformer, fused: FusedForward) -> None:
    """Raises HerdError that names the first layer, or the unembedding, in which the two differ."""
    config, weight = transformer.config, transformer.embedding.weight
    generator = torch.Generator().manual_seed(0)
    spans = sequences(config)
    lengths = [end - begin for begin, end in spans]
    ids = list(torch.randint(config.vocab_size, (sum(lengths),), generator=generator).split(lengths))
    packs = [pack_sequences(ids * copies, num_cached=[begin for begin, _ in spans] * copies) for copies in (COPIES, 1)]
    views = [
        view_of(pack, config, spans * copies, weight.dtype) for pack, copies in zip(packs, (COPIES, 1), strict=True)
    ]
    tokens_N = packs[1].tokens_N
    shared = plan_attention(packs[0].positions_N, packs[0].starts_S, config, cached=True)
    unit = torch.finfo(weight.dtype).eps
    x_ND = transformer.embed(tokens_N, None)
    for index, layer in enumerate(transformer.layers):
        assert isinstance(layer, Layer)
        out_CND = layer(with_noise(x_ND, generator), shared, views[0]).view(COPIES, *x_ND.shape)
        normed_CND = transformer.norm(out_CND.float()).float()
        other_ND = fused.layer(index, x_ND, packs[1], cache=views[1])
        compare(f"layer {index}", other_ND, normed_CND, packs[1].starts_S, unit)
        x_ND = out_CND[0]
    hidden_ND = transformer.norm(x_ND)
    logits_CNV = transformer.unembed(with_noise(hidden_ND, generator)).float().view(COPIES, len(x_ND), -1)
    compare("the unembedding", fused.unembed(hidden_ND.float()), logits_CNV, packs[1].starts_S, unit)


def with_noise(x_ND: Tensor, generator: torch.Generator) -> Tensor:
    """The rows, and behind them copies that differ by a rounding of their precision."""
    noise_CND = 2 * torch.rand(COPIES - 1, *x_ND.shape, generator=generator) - 1
    noisy_CND = (x_ND.float() * (1 + torch.finfo(x_ND.dtype).eps * noise_CND)).to(x_ND.dtype)
    return torch.cat([x_ND, noisy_CND.flatten(0, 1)])


def sequences(config: ModelConfig) -> list[tuple[int, int]]:
    """Begin and end of the positions; each sequence inside one chunk, and no longer than a page."""
    longest = min(config.page_tokens, config.chunk_size, config.max_positions)
    spans = [(0, min(NEAR, longest))]
    begin, length = int(config.temperature_floor), min(FAR, longest)
    if begin % config.chunk_size + length > config.chunk_size:
        begin = (begin // config.chunk_size + 1) * config.chunk_size
    return (
        [*spans, (begin, begin + length)]
        if config.temperature_tuning and begin + length <= config.max_positions
        else spans
    )


def view_of(pack: Pack, config: ModelConfig, spans: list[tuple[int, int]], dtype: torch.dtype) -> CacheView:
    """Room for the sequences. Each has one page, which is also used as every earlier one."""
    cache = KVCache(config, num_global=len(spans), num_local=len(spans), dtype=dtype, device=torch.device("cpu"))
    size, chunk = config.page_tokens, config.chunk_size
    return cache.view(
        pack,
        [[page] * -(-end // size) for page, (_, end) in enumerate(spans)],
        [[page] * -(-((end - 1) % chunk + 1) // size) for page, (_, end) in enumerate(spans)],
    )


def compare(where: str, ours: Tensor, twins: Tensor, starts_S: Tensor, unit: float) -> None:
    """Raise where the median token of a sequence differs by more than noise moves its copies in `twins` [C, N, …], of
    which the first is without, and the roundings of its size."""
    moved_N = (twins[1:] - twins[0]).norm(dim=-1).amax(0)
    allowed_N = MARGIN * moved_N + ROUNDINGS * unit * twins[0].norm(dim=-1)
    excess_N = (ours - twins[0]).norm(dim=-1) / allowed_N.clamp_min(1e-30)
    for excess in excess_N.split(torch.diff(starts_S).tolist()):
        if not float(excess.median()) <= 1:
            raise HerdError(
                f"the native forward (herd/native/forward.cpp) and the model in herd/model disagree in {where}, by "
                f"{float(excess.median()):.1f} times what rounding explains: one of them was changed alone, or the "
                "compiler is at fault; set HERD_NATIVE=0 to compute with herd/model"
            )
