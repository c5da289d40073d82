"""Dense Llama weights in the Llama 4 layout, with the same function.

    dense                                   here
    RoPE by halves of a head                RoPE by neighbouring channels: rows of q and k in another order
    full attention                          chunks as wide as the context
    feed-forward                            the shared expert
    no router                               routed experts whose output is zero, or copies (below)
    unembedding tied to the embedding       a copy

**One expert**: its output matrix is zero, the function is kept to the last bit of what both compute; the gate and up
matrices are the feed-forward's, so that training moves the output first.

**Several**: every expert is the feed-forward and does half of its work. Llama 4 multiplies the sigmoid of the router's
logit into the expert's *input*; a router near zero makes that one half, which gate and up matrices of twice the size
undo, exactly. The router has noise of ROUTER_NOISE, enough to send tokens to different experts, and by it alone the
function differs. After sparse upcycling (Komatsuzaki et al., arXiv 2212.05055), changed for the gate on the input.

Eyes: a new vision encoder, and rows for the tokens of pictures behind all others.
"""

# E experts, D width, F hidden width

from dataclasses import replace

import torch
from torch import Tensor, nn

from herd.config import ModelConfig, SpecialIds, VisionConfig
from herd.model.formats.llama import Dense
from herd.model.formats.weights import Weights
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.model.vision import VisionEncoder

ROUTER_NOISE = 1e-3
"""Standard deviation of the logits that a new router gives to inputs of unit scale."""


def convert_dense(dense: Dense, config: ModelConfig, generator: torch.Generator) -> Transformer:
    """The checkpoint as a model of `config`, which is `dense.config` with other experts, NoPE layers, rows or eyes."""
    with torch.device("meta"):
        model = Transformer(config)
    state = {
        "embedding.weight": pad_rows(dense.read("model.embed_tokens.weight"), config.vocab_size),
        "norm.weight": dense.read("model.norm.weight"),
    }
    state["unembedding.weight"] = (
        state["embedding.weight"].clone()
        if dense.tied
        else pad_rows(dense.read("lm_head.weight"), config.vocab_size)
    )  # fmt: skip
    for layer in range(config.num_layers):
        here, there = f"layers.{layer}", f"model.layers.{layer}"
        state[f"{here}.attention_norm.weight"] = dense.read(f"{there}.input_layernorm.weight")
        state[f"{here}.ffn_norm.weight"] = dense.read(f"{there}.post_attention_layernorm.weight")
        qkv = [dense.matrix(f"{there}.self_attn.{x}_proj.weight") for x in "qkv"]
        state[f"{here}.attention.qkv.weight"] = torch.cat(qkv)
        state[f"{here}.attention.out.weight"] = dense.read(f"{there}.self_attn.o_proj.weight")
        gate, up, down = (dense.read(f"{there}.mlp.{x}_proj.weight") for x in ("gate", "up", "down"))
        mixture = make_experts(torch.cat([gate, up]), down, config, generator)
        state |= {f"{here}.ffn.{name}": tensor for name, tensor in mixture.items()}
    dtype = state["embedding.weight"].dtype
    model.load_state_dict(state, strict=False, assign=True)
    if config.vision is not None:
        model.vision = new_encoder(config.vision, config.dim, generator).to(dtype)
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model.eval().requires_grad_(False)


def new_encoder(vision: VisionConfig, dim: int, generator: torch.Generator) -> VisionEncoder:
    """An untrained one, for a model of width `dim`."""
    encoder = VisionEncoder(vision, dim)
    initialise(nn.ModuleDict({"vision": encoder}), generator)
    return encoder


def with_encoder(
    weights: Weights, vision: VisionConfig, special: SpecialIds, vocab_size: int, generator: torch.Generator
) -> Weights:
    """A model that reads text alone with an untrained encoder, and with the tokens for pictures that `special` has."""
    config = replace(
        weights.config, vision=vision, special=special, vocab_size=max(weights.config.vocab_size, vocab_size)
    )
    new = {
        f"vision.{name}": one.detach() for name, one in new_encoder(vision, config.dim, generator).named_parameters()
    }

    def read(name: str) -> Tensor:
        if name in new:
            return new[name]
        rows = name in {"embedding.weight", "unembedding.weight"}
        return pad_rows(weights.read(name), config.vocab_size) if rows else weights.read(name)

    return Weights(config=config, dtype=weights.dtype, read=read)


def make_experts(gate_up: Tensor, down: Tensor, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """A feed-forward (gate over up [2F, D], down [D, F]) as the parameters of a mixture of the same function."""
    experts, dim = config.moe.num_experts, config.dim
    if experts == 1:
        router, scale, routed, shared = torch.zeros(1, dim), 1.0, torch.zeros_like(down), down
    else:
        router = torch.randn(experts, dim, generator=generator) * (ROUTER_NOISE * dim**-0.5)
        scale, routed, shared = 2.0, down / 2, down / 2
    return {
        "router.weight": router.to(down.dtype),
        "gate_up_EDF": (gate_up * scale).mT.expand(experts, -1, -1).contiguous(),
        "down_EFD": routed.mT.expand(experts, -1, -1).contiguous(),
        "shared.gate_up.weight": gate_up,
        "shared.down.weight": shared,
    }


def pad_rows(matrix: Tensor, rows: int) -> Tensor:
    """`matrix` with more rows, each the mean of the others: as logits, such rows are never the greatest."""
    return torch.cat([matrix, matrix.float().mean(0, keepdim=True).to(matrix.dtype).expand(rows - len(matrix), -1)])
