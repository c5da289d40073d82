"""The text model as GGUF for llama.cpp, architecture `llama4`. The vision encoder is left out.

llama.cpp has Llama 4's figures in its code: chunks of 8192, every fourth layer global, the temperature, QK norm
wherever there are not 128 experts. A model that has them otherwise would compute something else there: it is refused by
the first figure that differs. RoPE stands in the order of the released checkpoints, which is llama.cpp's too, so that
no row moves; scaled frequencies go along as `rope_freqs`. Vectors and the router stay fp32, as its own converter has
them.

Source: llama.cpp, src/models/llama4.cpp and conversion/llama4.py; tests compare with it (xllamacpp 2026.10).
"""

# E experts, D width, F hidden width

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.config import ModelConfig
from herd.core.errors import HerdError
from herd.core.files import naming_full_disk, read_json
from herd.model.attention import rope_frequencies
from herd.model.formats.gguf import package
from herd.model.formats.stored import finite
from herd.model.formats.weights import Weights, skeleton

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}
"""`general.file_type` (llama.h, llama_ftype)."""
GUARDED = r" | replace('<|', '<\ufdd0|')"
"""In our chat template: see herd/data/chat_template.jinja."""
NORMAL, CONTROL = 1, 3
"""Kinds of token."""
KEPT_FP32 = "ffn_gate_inp.weight"
"""Beside vectors."""


def check_text(config: ModelConfig) -> None:
    """Refuse what llama.cpp has otherwise in its code."""
    fixed = {
        "chunk_size": (config.chunk_size, 8192),
        "nope_every": (config.nope_every, 4),
        "temperature": (config.temperature, True),
        "temperature_floor": (config.temperature_floor, 8192),
        "temperature_scale": (config.temperature_scale, 0.1),
        f"qk_norm (with {config.moe.num_experts} experts)": (config.qk_norm, config.moe.num_experts != 128),
    }
    for name, (value, only) in fixed.items():
        if value != only:
            raise HerdError(
                f"{name}={value} cannot be told in GGUF: llama.cpp has {only} in its code and would compute "
                "another model; keep the folder (transformers opens it as it is)"
            )


def write_text(
    weights: Weights,
    tokenizer: Path,
    path: Path,
    *,
    dtype: torch.dtype,
    facts: dict[str, Any],
    quantized: str | None = None,
) -> None:
    """Write the text model with its tokenizer (from the folder `tokenizer`); `facts` go to the key herd.lineage.

    `quantized` (Q8_0 or Q4_0) stores every matrix so, for benches: llama.cpp's own tool keeps the output at more bits.
    """
    config = weights.config
    check_text(config)
    writer = package("gguf_writer").GGUFWriter(path, "llama4")
    writer.add_type("model")
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_string("herd.lineage", json.dumps(facts))
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.dense_ffn_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_expert_count(config.moe.num_experts)
    writer.add_expert_used_count(config.moe.top_k)
    writer.add_expert_feed_forward_length(config.moe.ffn_dim)
    writer.add_interleave_moe_layer_step(config.moe.every)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, config, tokenizer)
    write_tensors(writer, weights, path, dtype, quantized)


def add_tokenizer(writer: Any, config: ModelConfig, folder: Path) -> None:
    """The byte-level BPE of tokenizer.json, its special tokens and the chat template."""
    raw = read_json(folder / "tokenizer.json")
    try:
        ids = dict(raw["model"]["vocab"])
        special = {added["content"] for added in raw["added_tokens"] if added["special"]}
        ids |= {added["content"]: added["id"] for added in raw["added_tokens"]}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]]
    except (KeyError, TypeError, ValueError) as error:
        raise HerdError(f"{folder / 'tokenizer.json'} is not a byte-level BPE of tokenizers: {error!r}") from None
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(config.vocab_size)):
        raise HerdError(f"{folder / 'tokenizer.json'} has {len(ids)} tokens, the model {config.vocab_size}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama4")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config.special.bos)
    writer.add_eos_token_id(config.special.eot)
    writer.add_eot_token_id(config.special.eot)
    writer.add_eom_token_id(config.special.eom)
    writer.add_pad_token_id(config.special.pad)
    writer.add_add_bos_token(True)
    template = folder / "chat_template.jinja"
    if template.exists():
        # llama.cpp's reader of templates has no \u, and its tokenizer would keep what guards a message's text.
        writer.add_chat_template(template.read_text(encoding="utf-8").replace(GUARDED, ""))


def text_tensors(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's tensors by name, rows first, one parameter of ours at a time."""
    config, read = weights.config, weights.read
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "token_embd.weight", read("embedding.weight")
    yield "output_norm.weight", read("norm.weight")
    yield "output.weight", read("unembedding.weight")
    if config.rope_scaling is not None:
        yield "rope_freqs.weight", rope_frequencies(config, scaled=False) / rope_frequencies(config)
    for layer in range(config.num_layers):
        here, there = f"layers.{layer}", f"blk.{layer}"
        yield f"{there}.attn_norm.weight", read(f"{here}.attention_norm.weight")
        for name, rows in zip("qkv", read(f"{here}.attention.qkv.weight").split([q, kv, kv]), strict=True):
            yield f"{there}.attn_{name}.weight", rows
        yield f"{there}.attn_output.weight", read(f"{here}.attention.out.weight")
        yield f"{there}.ffn_norm.weight", read(f"{here}.ffn_norm.weight")
        inner, suffix = f"{here}.ffn", ""
        if config.is_moe(layer):
            yield f"{there}.ffn_gate_inp.weight", read(f"{inner}.router.weight")
            for name, half_EDF in zip(("gate", "up"), read(f"{inner}.gate_up_EDF").chunk(2, dim=-1), strict=True):
                yield f"{there}.ffn_{name}_exps.weight", half_EDF.mT
            yield f"{there}.ffn_down_exps.weight", read(f"{inner}.down_EFD").mT
            inner, suffix = f"{inner}.shared", "_shexp"
        for name, half in zip(("gate", "up"), read(f"{inner}.gate_up.weight").chunk(2), strict=True):
            yield f"{there}.ffn_{name}{suffix}.weight", half
        yield f"{there}.ffn_down{suffix}.weight", read(f"{inner}.down.weight")


def write_tensors(writer: Any, weights: Weights, path: Path, dtype: torch.dtype, quantized: str | None) -> None:
    """Write the file: the header from the shapes alone, then one tensor after the other."""
    constants, quants = package("constants"), package("quants")
    types = constants.GGMLQuantizationType

    def kind(name: str, tensor: Tensor) -> tuple[torch.dtype, str]:
        """In which dtype the tensor is rounded, and its type in the file."""
        if tensor.dim() == 1 or name.endswith(KEPT_FP32):
            return torch.float32, "F32"
        return (torch.float32, quantized) if quantized else (dtype, TYPES[dtype])

    without_memory = dict(skeleton(weights.config).named_parameters())
    shapes = Weights(config=weights.config, dtype=dtype, read=without_memory.__getitem__)
    for name, tensor in text_tensors(shapes):
        stored = types[kind(name, tensor)[1]]
        block, size = constants.GGML_QUANT_SIZES[stored]
        writer.add_tensor_info(name, tuple(tensor.shape), None, tensor.numel() // block * size, raw_dtype=stored)
    with naming_full_disk(path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in text_tensors(weights):
            rounding, stored = kind(name, tensor)
            rounded = tensor.to(rounding).contiguous()
            if rounded.dtype == torch.float16 and not finite(rounded):
                raise HerdError(f"{name} has values beyond the range of float16: convert with --dtype bfloat16")
            if stored == quantized:
                writer.write_tensor_data(quants.quantize(rounded.numpy(), types[stored]))
            else:
                writer.write_tensor_data(rounded.view(torch.uint8).numpy())
        writer.close()
