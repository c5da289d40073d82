"""First weights. Every matrix keeps the scale of its input; residual branches begin at zero."""

import torch
from torch import nn

from herd.config import ModelConfig
from herd.core.streams import seed_of
from herd.model.transformer import Layer, Transformer


def first_weights(shape: ModelConfig, seed: int, *, qk_init_correlation: float = 0.0) -> Transformer:
    """A new model in bf16, a function of its shape, the run's seed and `qk_init_correlation` (see
    `correlate_queries_with_keys`)."""
    model = Transformer(shape).to(torch.bfloat16)
    initialise(model, torch.Generator().manual_seed(seed_of(seed, "weights")))
    if qk_init_correlation:
        correlate_queries_with_keys(model, qk_init_correlation)
    return model


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Fill all parameters in place, in the order of their names' definition."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or ("norm_" in name and name.endswith("weight")):
                parameter.fill_(1)
            elif name.endswith(".bias"):
                parameter.zero_()
            elif name.endswith(("out.weight", "down.weight", "down_EFD")) and "adapter" not in name:
                # Residual branches add nothing at first: depth then costs no stability.
                parameter.zero_()
            elif name == "unembedding.weight":
                parameter.zero_()
            elif name == "embedding.weight":
                parameter.normal_(0, 1, generator=generator)
            elif name in {"vision.positions", "vision.class_token"}:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                fan_in = parameter.shape[-2] if name.endswith("EDF") else parameter.shape[-1]
                parameter.normal_(0, fan_in**-0.5, generator=generator)


@torch.no_grad()
def correlate_queries_with_keys(model: Transformer, correlation: float) -> None:
    """Let the queries of global layers begin near the keys of their group: with this correlation, each head in its own
    way. A token then attends to what is like it, and finding what follows the same words is a small step from there.
    """
    config = model.config
    heads, kv_heads = config.num_heads, config.num_kv_heads
    for layer in model.layers:
        assert isinstance(layer, Layer)
        if layer.attention.is_global:
            weight_HCD = layer.attention.qkv.weight.unflatten(0, (-1, config.head_dim))
            key_HCD = weight_HCD[heads : heads + kv_heads].repeat_interleave(heads // kv_heads, 0)
            weight_HCD[:heads] = correlation * key_HCD + (1 - correlation**2) ** 0.5 * weight_HCD[:heads]
