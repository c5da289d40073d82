"""What the native forward knows of a model: every field of its config and of its modules, by name.

A field that is not in these lists may change what the model computes, and the kernel would not know: such a model is
refused, and PyTorch's forward serves. Who adds a field either teaches herd/native/forward.cpp to compute it, or shows
that it changes nothing there, and only then adds its name here.
"""

import dataclasses
from collections.abc import Iterator

from torch import nn

from herd.config import ModelConfig, MoEConfig, RopeScaling
from herd.model.attention import Attention
from herd.model.moe import FeedForward, MoE
from herd.model.precision import Linear
from herd.model.quantize import Packed
from herd.model.transformer import Layer, RMSNorm, Transformer

CONFIG_FIELDS: dict[type, set[str]] = {
    ModelConfig: {
        *("vocab_size", "special", "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "dense_ffn_dim"),
        *("moe", "nope_every", "chunk_size", "qk_norm", "norm_eps", "max_positions", "rope_theta"),
        *("temperature_tuning", "temperature_floor", "temperature_scale"),
        "vision",  # pictures come as embedded rows
        "rope_scaling",  # attention.py computes the frequencies
    },
    MoEConfig: {"num_experts", "ffn_dim", "top_k", "every"},
    RopeScaling: {"factor", "low_freq_factor", "high_freq_factor", "original_max_positions"},
}

MODULE_FIELDS: dict[type[nn.Module], set[str]] = {
    Transformer: {"config", "embedding", "vision", "layers", "norm", "recompute", "unembedding"},
    Layer: {"attention_norm", "attention", "ffn_norm", "ffn"},
    RMSNorm: {"weight", "eps"},
    Attention: {"config", "layer", "is_global", "rotates", "qkv", "out"},
    FeedForward: {"gate_up", "down"},
    MoE: {
        *("config", "router", "gate_up_EDF", "down_EFD", "shared", "bias_E"),
        *("logits_NE", "load_E", "count_E", "expert_Nk"),  # what is read after a forward
    },
    Linear: {"in_features", "out_features", "weight", "bias"},
    Packed: {"scheme", "weight", "scale"},
    nn.Linear: {"in_features", "out_features", "weight", "bias"},
    nn.Embedding: {
        *("num_embeddings", "embedding_dim", "padding_idx", "weight"),
        *("max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    },
}
OWN = set(vars(nn.Module()))
"""What every module of PyTorch has."""
HOOKS = tuple(name for name in sorted(OWN) if name.endswith("_hooks") and "forward" in name)


def unknown_field(transformer: Transformer) -> str | None:
    """A field, module or hook of the model that the native forward does not know; None where it knows all."""
    config = transformer.config
    parts: list[ModelConfig | MoEConfig | RopeScaling] = [config, config.moe]
    if config.rope_scaling is not None:
        parts.append(config.rope_scaling)
    for one in parts:
        names = {field.name for field in dataclasses.fields(one)}
        if new := sorted(names - CONFIG_FIELDS.get(type(one), set())):
            return f"{type(one).__name__} has the field {new[0]!r}, which the native forward does not know"
    for name, module in language_modules(transformer):
        known = MODULE_FIELDS.get(type(module))
        if known is None:
            return f"{name} is a {type(module).__name__}, which the native forward does not know"
        if new := sorted(module_fields(module) - known):
            return f"{name} has the field {new[0]!r}, which the native forward does not know"
        if any(getattr(module, hooks) for hooks in HOOKS):
            return f"{name} has a forward hook, which the native forward would not call"
        if getattr(module, "bias", None) is not None:
            return f"{name} has a bias"
        if isinstance(module, RMSNorm) and module.eps != config.norm_eps:
            return f"{name} has eps={module.eps}, the config {config.norm_eps}"
    return None


def language_modules(transformer: Transformer) -> Iterator[tuple[str, nn.Module]]:
    """All modules but the vision encoder's, with their names."""
    for name, module in transformer.named_modules():
        if name.split(".")[0] != "vision" and name != "layers":
            yield name or "the model", module


def module_fields(module: nn.Module) -> set[str]:
    """Attributes, parameters, buffers and submodules that are the module's own."""
    return (set(vars(module)) - OWN) | {*module._parameters, *module._buffers, *module._modules}
