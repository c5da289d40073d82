"""Writing the text model as GGUF for llama.cpp. The vision encoder is left out.

Architecture `llama4`. llama.cpp has Llama 4's figures in its code: chunks of 8192, every fourth layer global, the
temperature, QK norm unless there are 128 experts. Where a model has another chunk or temperature, the function is the
same as long as neither begins: such a file claims only that much context. Other global layers or another QK norm are
another function at once.

Architecture `llama` (dense), where every layer has RoPE and the output of every routed expert is zero, as `herd adopt`
makes them: then the shared expert is the feed-forward.

RoPE has the channel order of the released checkpoints, which is llama.cpp's too, so that no row moves; scaled
frequencies go along as `rope_freqs`. Vectors and the router stay fp32, as its own converter has them.

Source: llama.cpp, src/models/llama4.cpp and conversion/llama4.py; tests compare with it (xllamacpp 2026.10).
"""

# E experts, D width, F hidden width

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.config import ModelConfig
from herd.core.files import naming_full_disk
from herd.data.tokens.formats import split_name
from herd.errors import HerdError
from herd.model.attention import rope_frequencies
from herd.model.formats.floats import float_of
from herd.model.formats.gguf import package
from herd.model.formats.stored import is_finite
from herd.model.formats.weights import Weights, skeleton

GUARDED = r" | replace('<|', '<\ufdd0|')"
"""In our chat template: see herd/data/tokens/chat_template.jinja."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of token."""
KEPT_FP32 = "ffn_gate_inp.weight"
"""Beside vectors."""


CHUNK = TEMPERATURE_FLOOR = 8192
TEMPERATURE_SCALE = 0.1
NOPE_EVERY = 4


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a model is written: an architecture of llama.cpp, and the context in which that is the same function."""

    architecture: str
    context: int
    reason: str = ""
    """Why it is less than the model claims."""


def form_of(weights: Weights) -> Form:
    """The form of a model. Raises HerdError where llama.cpp has no architecture that computes the same."""
    config = weights.config
    rotates = [not config.is_global(layer) for layer in range(config.num_layers)]
    if all(rotates) and not config.qk_norm and is_dense(weights):
        return limit_context("llama", config, {"attention_chunk_size": config.chunk_size})
    fixed = [(layer + 1) % NOPE_EVERY != 0 for layer in range(config.num_layers)]
    experts = config.moe.num_experts
    if rotates != fixed:
        refuse_form(
            f"nope_every={config.nope_every}", f"{NOPE_EVERY} (in its dense Llama none, without routed experts)"
        )
    if any(rotates) and config.qk_norm != (experts != 128):
        refuse_form(f"qk_norm (with {experts} experts)={config.qk_norm}", experts != 128)
    limits = {}
    if any(rotates) and config.chunk_size != CHUNK:
        limits["attention_chunk_size"] = min(config.chunk_size, CHUNK)
    own = (config.temperature_floor, config.temperature_scale) if config.temperature_tuning else None
    if not all(rotates) and own != (TEMPERATURE_FLOOR, TEMPERATURE_SCALE):
        # The first position that is scaled is the floor - 1.
        limits["temperature_floor"] = min(own[0] if own else TEMPERATURE_FLOOR, TEMPERATURE_FLOOR) - 1
    return limit_context("llama4", config, limits)


def limit_context(architecture: str, config: ModelConfig, limits: dict[str, int]) -> Form:
    """The form whose context is the least of the limits."""
    name, context = min(limits.items(), key=lambda item: item[1], default=("", config.max_positions))
    if context >= config.max_positions:
        return Form(architecture=architecture, context=config.max_positions)
    reason = f"beyond that llama.cpp computes otherwise, as its {name} is fixed at {CHUNK} and this model's is not"
    return Form(architecture=architecture, context=context, reason=reason)


def refuse_form(what: str, only: object) -> None:
    raise HerdError(
        f"{what} has no form in GGUF: llama.cpp has {only} in its code and would compute another model; "
        "keep the folder, which transformers opens as it is"
    )


def is_dense(weights: Weights) -> bool:
    """Whether the feed-forward of every layer is its shared expert alone, and of one width."""
    config = weights.config
    mixtures = [layer for layer in range(config.num_layers) if config.is_moe(layer)]
    if len(mixtures) < config.num_layers and config.dense_ffn_dim != config.moe.ffn_dim:
        return False
    return not any(weights.read(f"layers.{layer}.ffn.down_EFD").any() for layer in mixtures)


def write_text(
    weights: Weights,
    tokenizer: Mapping[str, Any],
    path: Path,
    *,
    dtype: torch.dtype,
    facts: dict[str, Any],
    template: str | None = None,
    quantized: str | None = None,
) -> Form:
    """Write the text model with its tokenizer (what tokenizer.json holds); `facts` go to the key herd.lineage.

    `quantized` (Q8_0 or Q4_0) stores every matrix so, for benches: llama.cpp's own tool keeps the output at more bits.
    """
    config, form = weights.config, form_of(weights)
    mixture = form.architecture == "llama4"
    writer = package("gguf_writer").GGUFWriter(path, form.architecture)
    writer.add_type("model")
    writer.add_file_type(float_of(dtype).gguf_file)
    writer.add_string("herd.lineage", json.dumps(facts))
    writer.add_context_length(form.context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.dense_ffn_dim if mixture else config.moe.ffn_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if mixture:
        writer.add_expert_count(config.moe.num_experts)
        writer.add_expert_used_count(config.moe.top_k)
        writer.add_expert_feed_forward_length(config.moe.ffn_dim)
        writer.add_interleave_moe_layer_step(config.moe.every)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, config, tokenizer, template)
    write_tensors(writer, weights, path, dtype, quantized, mixture=mixture)
    return form


def add_tokenizer(writer: Any, config: ModelConfig, document: Mapping[str, Any], template: str | None) -> None:
    """A byte-level BPE, its special tokens and the chat template."""
    try:
        ids = dict(document["model"]["vocab"])
        added = {one["content"]: one for one in document["added_tokens"]}
        ids |= {content: one["id"] for content, one in added.items()}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
        split = split_name(document["pre_tokenizer"])
    except (KeyError, TypeError, ValueError) as error:
        raise HerdError(f"tokenizer.json is not a byte-level BPE of tokenizers: {error!r}") from None
    if split is None:
        raise HerdError("tokenizer.json cuts text by a rule that llama.cpp has no name for here: keep the folder")
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))) or len(tokens) > config.vocab_size:
        raise HerdError(f"tokenizer.json has {len(ids)} tokens, the model {config.vocab_size}")

    def kind(token: str) -> int:
        if token not in added:
            return NORMAL
        return CONTROL if added[token]["special"] else USER_DEFINED

    spare = [f"[PAD{index}]" for index in range(len(tokens), config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([*tokens, *spare])
    writer.add_token_types([*map(kind, tokens), *(UNUSED for _ in spare)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config.special.bos)
    writer.add_eos_token_id(config.special.eot)
    writer.add_eot_token_id(config.special.eot)
    if config.special.eom != config.special.eot:
        writer.add_eom_token_id(config.special.eom)
    writer.add_pad_token_id(config.special.pad)
    begins = json.dumps(document.get("post_processor") or {}, ensure_ascii=False)
    writer.add_add_bos_token(json.dumps(tokens[config.special.bos], ensure_ascii=False) in begins)
    if template is not None:
        # llama.cpp's reader of templates has no \u, and its tokenizer would keep what guards a message's text.
        writer.add_chat_template(template.replace(GUARDED, ""))


def text_tensors(weights: Weights, *, mixture: bool = True) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's tensors by name, rows first, one parameter of ours at a time.

    Without `mixture` those of a dense Llama.
    """
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
        if config.is_moe(layer) and not mixture:
            inner = f"{inner}.shared"
        elif config.is_moe(layer):
            yield f"{there}.ffn_gate_inp.weight", read(f"{inner}.router.weight")
            for name, half_EDF in zip(("gate", "up"), read(f"{inner}.gate_up_EDF").chunk(2, dim=-1), strict=True):
                yield f"{there}.ffn_{name}_exps.weight", half_EDF.mT
            yield f"{there}.ffn_down_exps.weight", read(f"{inner}.down_EFD").mT
            inner, suffix = f"{inner}.shared", "_shexp"
        for name, half in zip(("gate", "up"), read(f"{inner}.gate_up.weight").chunk(2), strict=True):
            yield f"{there}.ffn_{name}{suffix}.weight", half
        yield f"{there}.ffn_down{suffix}.weight", read(f"{inner}.down.weight")


def write_tensors(
    writer: Any, weights: Weights, path: Path, dtype: torch.dtype, quantized: str | None, *, mixture: bool
) -> None:
    """Write the file: the header from the shapes alone, then one tensor after the other."""
    constants, quants = package("constants"), package("quants")
    types = constants.GGMLQuantizationType

    def kind(name: str, tensor: Tensor) -> tuple[torch.dtype, str]:
        """In which dtype the tensor is rounded, and its type in the file."""
        if tensor.dim() == 1 or name.endswith(KEPT_FP32):
            return torch.float32, float_of(torch.float32).stored
        return (torch.float32, quantized) if quantized else (dtype, float_of(dtype).stored)

    without_memory = dict(skeleton(weights.config).named_parameters())
    shapes = Weights(config=weights.config, dtype=dtype, read=without_memory.__getitem__)
    for name, tensor in text_tensors(shapes, mixture=mixture):
        stored = types[kind(name, tensor)[1]]
        block, size = constants.GGML_QUANT_SIZES[stored]
        writer.add_tensor_info(name, tuple(tensor.shape), None, tensor.numel() // block * size, raw_dtype=stored)
    with naming_full_disk(path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in text_tensors(weights, mixture=mixture):
            rounding, stored = kind(name, tensor)
            rounded = tensor.to(rounding).contiguous()
            if rounded.dtype == torch.float16 and not is_finite(rounded):
                raise HerdError(f"{name} has values beyond the range of float16: convert with --dtype bfloat16")
            if stored == quantized:
                writer.write_tensor_data(quants.quantize(rounded.numpy(), types[stored]))
            else:
                writer.write_tensor_data(rounded.view(torch.uint8).numpy())
        writer.close()
