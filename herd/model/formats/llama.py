"""A dense Llama checkpoint, read as the Llama 4 model of text alone that it becomes.

Two forms: a Hugging Face folder (model_type `llama`, safetensors) and a GGUF of architecture `llama`, dequantised. What
the Llama 4 layout has no place for (biases, other activations, other kinds of RoPE scaling) is refused by name.
"""

# D width, F hidden width, H heads, K key heads, C head width, V vocabulary

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from herd.config import ModelConfig, MoEConfig, SpecialIds
from herd.core.files import read_json
from herd.errors import HerdError
from herd.model.formats.config_json import read_rope
from herd.model.formats.floats import FLOATS
from herd.model.formats.gguf import uniform
from herd.model.formats.rope_factors import linear_divisor, scaling_of
from herd.model.formats.weights import plain_names, rename_hints

LAYER_PARTS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"),
)
GGUF_PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm")
"""The tensors of a layer as Hugging Face and GGUF call them, in one order."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A dense checkpoint whose names and shapes have been checked."""

    config: ModelConfig
    """The model of text alone that it becomes: one expert beside its feed-forward, no NoPE layer, no QK norm."""
    read: Callable[[str], Tensor]
    """A tensor by its name in the Hugging Face layout."""
    tied: bool
    """The unembedding is the embedding."""
    interleaved: bool
    """Rows of q and k are already laid out for rotation of neighbouring channels (GGUF), not of halves."""
    dtype: torch.dtype
    """In which every weight can be kept without loss."""

    def matrix(self, name: str) -> Tensor:
        """A tensor of the checkpoint; q and k with the channels of a pair next to each other."""
        tensor = self.read(name)
        if self.interleaved or not name.endswith(("q_proj.weight", "k_proj.weight")):
            return tensor
        halves = tensor.unflatten(0, (-1, 2, self.config.head_dim // 2))
        return halves.transpose(1, 2).flatten(0, 2)


def dense_config(raw: Mapping[str, Any], special: SpecialIds, *, where: str) -> ModelConfig:
    """The configuration of `LlamaForCausalLM` as ours; absent values are transformers' defaults."""
    kind = raw.get("model_type")
    if kind != "llama":
        raise HerdError(f"{where}: architecture {kind!r} is not adopted, only dense Llama ('llama') is")
    for key, wanted, reason in (
        ("attention_bias", False, "the Llama 4 layout has no biases in attention"),
        ("mlp_bias", False, "the Llama 4 layout has no biases in its feed-forwards"),
        ("hidden_act", "silu", "the Llama 4 layout knows SwiGLU alone"),
        ("quantization_config", None, "adopt the weights from before they were quantised"),
    ):
        if raw.get(key, wanted) != wanted:
            raise HerdError(f"{where}: {key}={raw[key]!r} cannot come along: {reason}")
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for key in (*needed, "max_position_embeddings"):
        if type(raw.get(key)) is not int or raw[key] < 1:
            raise HerdError(f"{where} is not a complete Llama configuration: {key}={raw.get(key)!r}")
    theta, scaling = read_rope(raw, f"{where}: ", default_theta=10_000.0)
    try:
        heads, dim, max_positions = raw["num_attention_heads"], raw["hidden_size"], raw["max_position_embeddings"]
        return ModelConfig(
            vocab_size=raw["vocab_size"],
            special=special,
            dim=dim,
            num_layers=raw["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or dim // heads,
            dense_ffn_dim=raw["intermediate_size"],
            moe=MoEConfig(num_experts=1, ffn_dim=raw["intermediate_size"]),
            vision=None,
            nope_every=raw["num_hidden_layers"] + 1,
            chunk_size=max_positions,
            qk_norm=False,
            temperature_tuning=False,
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            max_positions=max_positions,
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise HerdError(f"{where} is not a complete Llama configuration: {error!r}") from None


def shapes(config: ModelConfig, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Name in the Hugging Face layout and shape of every tensor of a dense Llama."""
    dim, hidden = config.dim, config.moe.ffn_dim
    q, k = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    of_layer = ((q, dim), (k, dim), (k, dim), (dim, q), (hidden, dim), (hidden, dim), (dim, hidden), (dim,), (dim,))
    ends = ("model.embed_tokens.weight", *(() if tied else ("lm_head.weight",)))
    return {
        **dict.fromkeys(ends, (config.vocab_size, dim)),
        "model.norm.weight": (dim,),
        **{
            f"model.layers.{layer}.{part}.weight": shape
            for layer in range(config.num_layers)
            for part, shape in zip(LAYER_PARTS, of_layer, strict=True)
        },
    }


def check(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Raises HerdError that names tensors which are missing, have another shape, or have no place."""
    missing, extra = ([name for name in one if name not in other] for one, other in ((wanted, found), (found, wanted)))
    problems = rename_hints(missing, extra) + [f"{name} is missing" for name in missing]
    problems += [
        f"{name} has shape {found[name]} and not {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    problems += [f"{name} has no place in the Llama 4 layout" for name in extra]
    if problems:
        raise HerdError(f"{where}: {'; '.join(problems[:4])}" + (" …" if len(problems) > 4 else ""))


def read_folder(folder: Path, special: SpecialIds) -> Dense:
    """Open a Hugging Face folder of `LlamaForCausalLM`; tensors are read when asked for."""
    raw = read_json(folder / "config.json")
    config = dense_config(raw, special, where=str(folder / "config.json"))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.exists() and not single.exists():
        raise HerdError(f"{folder} has no model.safetensors: weights in other forms are not read")
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else [single.name]
    held: dict[str, Any] = {}
    for path in (folder / name for name in names):
        try:
            file = safe_open(path, framework="pt", device="cpu")
        except FileNotFoundError:
            raise HerdError(f"{path} is missing: copy the folder again, whole") from None
        except SafetensorError as error:
            raise HerdError(f"{path} is damaged ({error}): copy the folder again, whole") from None
        held |= {name: partial(file.get_slice, name) for name in file.keys()}  # noqa: SIM118, no mapping
    held = plain_names(folder, held, shapes(config, tied=False))
    tied = bool(raw.get("tie_word_embeddings")) and "lm_head.weight" not in held
    found = {name: tuple(slice().get_shape()) for name, slice in held.items()}
    check(shapes(config, tied=tied), found, where=str(folder))
    kinds = {slice().get_dtype() for slice in held.values()}
    known = sorted(one.stored for one in FLOATS.values())
    if not kinds <= {*known}:
        raise HerdError(f"{folder}: weights of type {', '.join(sorted(kinds))} are not read, only {', '.join(known)}")
    return Dense(
        config=config,
        read=lambda name: held[name]()[:],
        tied=tied,
        interleaved=False,
        dtype=torch.bfloat16 if kinds == {"BF16"} else torch.float32,
    )


def read_gguf_llama(
    metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray], special: SpecialIds, *, where: str
) -> Dense:
    """A GGUF of architecture `llama` by its metadata and its dequantised tensors."""
    kind = metadata.get("general.architecture")
    if metadata.get(f"{kind}.expert_count"):
        raise HerdError(f"{where}: architecture {kind!r} with experts is not adopted, only dense Llama is")
    rotated = metadata.get("llama.rope.dimension_count")
    embedding = arrays.get("token_embd.weight")
    raw = {
        "model_type": kind,
        "vocab_size": metadata.get("llama.vocab_size", 0 if embedding is None else len(embedding)),
        "hidden_size": metadata.get("llama.embedding_length"),
        "num_hidden_layers": metadata.get("llama.block_count"),
        "num_attention_heads": uniform(metadata, "llama.attention.head_count", where=where),
        "num_key_value_heads": uniform(metadata, "llama.attention.head_count_kv", where=where),
        "head_dim": metadata.get("llama.attention.key_length", rotated),
        "intermediate_size": uniform(metadata, "llama.feed_forward_length", where=where),
        "max_position_embeddings": metadata.get("llama.context_length"),
        "rms_norm_eps": metadata.get("llama.attention.layer_norm_rms_epsilon", 1e-5),
        "rope_theta": metadata.get("llama.rope.freq_base", 10_000.0),
    }
    config = dense_config(raw, special, where=where)
    if rotated is not None and rotated != config.head_dim:
        raise HerdError(f"{where}: {rotated} of {config.head_dim} channels are rotated, the Llama 4 layout rotates all")
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(config.num_layers):
        for theirs, part in zip(GGUF_PARTS, LAYER_PARTS, strict=True):
            names[f"blk.{layer}.{theirs}"] = f"model.layers.{layer}.{part}"
    names = {f"{theirs}.weight": f"{part}.weight" for theirs, part in names.items()}
    held = {names.get(name, name): array for name, array in arrays.items()}
    divisors = torch.full((config.head_dim // 2,), linear_divisor(metadata, "llama", where=where))
    if (factors := held.pop("rope_freqs.weight", None)) is not None:
        divisors = divisors * torch.tensor(factors)
    config = replace(config, rope_scaling=scaling_of(divisors, config, where=where))
    tied = "lm_head.weight" not in held
    check(shapes(config, tied=tied), {name: array.shape for name, array in held.items()}, where=where)
    return Dense(
        config=config,
        read=lambda name: torch.from_numpy(np.array(held[name], np.float32)),
        tied=tied,
        interleaved=True,
        dtype=torch.float32,
    )
