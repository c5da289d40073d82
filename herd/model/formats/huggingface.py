"""The Hugging Face Llama 4 folder: the only weight format that Herd writes as its own.

`save` streams shard by shard, `load` tensor by tensor; names and layouts are transformers' (gate and up fused for
routed experts, apart elsewhere; q, k, v apart). Loading is strict: every missing, extra or misshapen tensor is named.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from herd.config import ModelConfig, MoEConfig, RopeScaling, SpecialIds, VisionConfig
from herd.core.errors import HerdError
from herd.core.files import naming_full_disk, read_json, write_json
from herd.model.formats.stored import Stored, open_safetensors
from herd.model.formats.weights import Weights, assemble, check, refuse, skeleton
from herd.model.transformer import Transformer

MAX_SHARD_BYTES = 4_000_000_000


def config_to_json(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of a folder; the dtype is that of the stored weights."""
    special, vision, moe, scaling = config.special, config.vision, config.moe, config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    name = str(dtype).removeprefix("torch.")
    ids = {"bos_token_id": special.bos, "eos_token_id": list(special.stop), "pad_token_id": special.pad}
    text = {
        "model_type": "llama4_text",
        "dtype": name,
        **ids,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": moe.ffn_dim,
        "intermediate_size_mlp": config.dense_ffn_dim,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "interleave_moe_layer_step": moe.every,
        "moe_layers": [layer for layer in range(config.num_layers) if config.is_moe(layer)],
        "no_rope_layers": [int(not config.is_global(layer)) for layer in range(config.num_layers)],
        "no_rope_layer_interval": config.nope_every,
        "attention_chunk_size": config.chunk_size,
        "use_qk_norm": config.qk_norm,
        "attn_temperature_tuning": config.temperature,
        "floor_scale": config.temperature_floor,
        "attn_scale": config.temperature_scale,
        "rope_parameters": rope,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
    }
    if vision is None:
        return {"architectures": ["Llama4ForCausalLM"], **text}
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "dtype": name,
        "boi_token_index": special.image_start,
        "eoi_token_index": special.image_end,
        "image_token_index": special.patch,
        "tie_word_embeddings": False,
        **ids,
        "text_config": text,
        "vision_config": {
            "model_type": "llama4_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.dim,
            "intermediate_size": vision.mlp_dim,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "num_channels": 3,
            "pixel_shuffle_ratio": 0.5,
            "projector_input_dim": vision.adapter_dim,
            "projector_output_dim": vision.adapter_dim,
            "vision_output_dim": vision.adapter_dim,
            "rope_parameters": {"rope_type": "default", "rope_theta": vision.rope_theta},
            "norm_eps": vision.norm_eps,
            "hidden_act": "gelu",
        },
    }


def config_from_json(folder: Path) -> ModelConfig:
    """Read config.json (and the tile limit from preprocessor_config.json); refuse values that Herd cannot honour.

    A folder of `llama4_text` is a model of text alone and has no preprocessor.
    """
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind not in {"llama4", "llama4_text"}:
        raise HerdError(
            f"{folder / 'config.json'}: model_type={kind!r} is not 'llama4' (`herd adopt` brings dense Llamas home)"
        )
    processor = read_json(folder / "preprocessor_config.json") if kind == "llama4" else None
    try:
        return _config(raw, processor, folder)
    except (KeyError, TypeError) as error:
        raise HerdError(f"{folder / 'config.json'} is not a complete Llama 4 configuration: {error!r}") from None


def _config(raw: dict[str, Any], processor: dict[str, Any] | None, folder: Path) -> ModelConfig:
    text, vision = (raw["text_config"], raw["vision_config"]) if processor is not None else (raw, None)
    rope = text["rope_parameters"]
    eos = raw["eos_token_id"]  # fewer than three where one token has several of the offices
    config = ModelConfig(
        vocab_size=text["vocab_size"],
        special=SpecialIds(
            bos=raw["bos_token_id"],
            end_of_text=eos[0],
            eom=eos[min(1, len(eos) - 1)],
            eot=eos[-1],
            pad=raw["pad_token_id"],
            image_start=raw["boi_token_index"] if vision else None,
            image_end=raw["eoi_token_index"] if vision else None,
            patch=raw["image_token_index"] if vision else None,
        ),
        dim=text["hidden_size"],
        num_layers=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"],
        num_kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        dense_ffn_dim=text["intermediate_size_mlp"],
        moe=MoEConfig(
            num_experts=text["num_local_experts"],
            ffn_dim=text["intermediate_size"],
            top_k=text["num_experts_per_tok"],
            every=text["interleave_moe_layer_step"],
        ),
        vision=VisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            dim=vision["hidden_size"],
            num_layers=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"],
            adapter_dim=vision["projector_output_dim"],
            max_tiles=processor["max_patches"],
            rope_theta=vision["rope_parameters"]["rope_theta"],
            norm_eps=vision["norm_eps"],
        )
        if processor is not None and vision is not None
        else None,
        nope_every=text["no_rope_layer_interval"],
        chunk_size=text["attention_chunk_size"],
        qk_norm=text["use_qk_norm"],
        temperature=text["attn_temperature_tuning"],
        temperature_floor=text["floor_scale"],
        temperature_scale=text["attn_scale"],
        rope_theta=rope["rope_theta"],
        rope_scaling=RopeScaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_positions=rope["original_max_position_embeddings"],
        )
        if rope["rope_type"] == "llama3"
        else None,
        norm_eps=text["rms_norm_eps"],
        max_positions=text["max_position_embeddings"],
    )
    written = config_to_json(config, torch.float32)
    for part, values in (("text_config.", text), ("vision_config.", vision or {})):
        supported = written[part[:-1]] if vision else written
        for key, value in values.items():
            if key in supported and key not in {"dtype", "architectures"} and supported[key] != value:
                place = f"{part if vision else ''}{key}"
                raise HerdError(f"{folder / 'config.json'}: {place}={value!r} is not supported")
    return config


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one of our parameters stands in the folder: the names there, and the way there and back."""

    names: tuple[str, ...]
    split: Callable[[Tensor], list[Tensor]]
    join: Callable[[list[Tensor]], Tensor]


def _plain(name: str) -> Rule:
    return Rule(names=(name,), split=lambda x: [x], join=lambda xs: xs[0])


def _rows(names: tuple[str, ...], sizes: list[int]) -> Rule:
    return Rule(names=names, split=lambda x: list(x.split(sizes)), join=torch.cat)


def rules(config: ModelConfig) -> dict[str, Rule]:
    """For every parameter of `Transformer`, where it stands in a Hugging Face folder."""
    inside = "language_model." if config.vision else ""
    text = f"{inside}model"
    heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
    table = {
        "embedding.weight": _plain(f"{text}.embed_tokens.weight"),
        "norm.weight": _plain(f"{text}.norm.weight"),
        "unembedding.weight": _plain(f"{inside}lm_head.weight"),
        **(vision_rules(config.vision) if config.vision else {}),
    }
    for layer in range(config.num_layers):
        here, there = f"layers.{layer}", f"{text}.layers.{layer}"
        table[f"{here}.attention_norm.weight"] = _plain(f"{there}.input_layernorm.weight")
        table[f"{here}.ffn_norm.weight"] = _plain(f"{there}.post_attention_layernorm.weight")
        table[f"{here}.attention.qkv.weight"] = _rows(
            tuple(f"{there}.self_attn.{x}_proj.weight" for x in "qkv"),
            [heads * width, kv_heads * width, kv_heads * width],
        )
        table[f"{here}.attention.out.weight"] = _plain(f"{there}.self_attn.o_proj.weight")
        mixture = config.is_moe(layer)
        if mixture:
            table[f"{here}.ffn.router.weight"] = _plain(f"{there}.feed_forward.router.weight")
            table[f"{here}.ffn.gate_up_EDF"] = _plain(f"{there}.feed_forward.experts.gate_up_proj")
            table[f"{here}.ffn.down_EFD"] = _plain(f"{there}.feed_forward.experts.down_proj")
        hidden = config.moe.ffn_dim if mixture else config.dense_ffn_dim
        ours = f"{here}.ffn.shared" if mixture else f"{here}.ffn"
        theirs = f"{there}.feed_forward.shared_expert" if mixture else f"{there}.feed_forward"
        table[f"{ours}.gate_up.weight"] = _rows(
            (f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight"), [hidden, hidden]
        )
        table[f"{ours}.down.weight"] = _plain(f"{theirs}.down_proj.weight")
    return table


def vision_rules(config: VisionConfig) -> dict[str, Rule]:
    """The same for the encoder, its adapter and its projector."""
    vision = "vision_model"
    table = {
        "vision.patches.weight": _plain(f"{vision}.patch_embedding.linear.weight"),
        "vision.class_token": _plain(f"{vision}.class_embedding"),
        "vision.positions": _plain(f"{vision}.positional_embedding_vlm"),
        "vision.adapter_in.weight": _plain(f"{vision}.vision_adapter.mlp.fc1.weight"),
        "vision.adapter_out.weight": _plain(f"{vision}.vision_adapter.mlp.fc2.weight"),
        "vision.projector.weight": _plain("multi_modal_projector.linear_1.weight"),
    }
    for ours, theirs in (("norm_before", "layernorm_pre"), ("norm_after", "layernorm_post")):
        for kind in ("weight", "bias"):
            table[f"vision.{ours}.{kind}"] = _plain(f"{vision}.{theirs}.{kind}")
    for layer in range(config.num_layers):
        here, there = f"vision.layers.{layer}", f"{vision}.model.layers.{layer}"
        for kind in ("weight", "bias"):
            table[f"{here}.attention_norm.{kind}"] = _plain(f"{there}.input_layernorm.{kind}")
            table[f"{here}.mlp_norm.{kind}"] = _plain(f"{there}.post_attention_layernorm.{kind}")
            table[f"{here}.qkv.{kind}"] = _rows(
                tuple(f"{there}.self_attn.{x}_proj.{kind}" for x in "qkv"), [config.dim] * 3
            )
            table[f"{here}.out.{kind}"] = _plain(f"{there}.self_attn.o_proj.{kind}")
            table[f"{here}.up.{kind}"] = _plain(f"{there}.mlp.fc1.{kind}")
            table[f"{here}.down.{kind}"] = _plain(f"{there}.mlp.fc2.{kind}")
    return table


def save(model: Transformer, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config.json and the weights in shards with their index. The caller commits the folder as a whole."""
    write(Weights.of(model), folder, dtype=dtype)


def write(weights: Weights, folder: Path, *, dtype: torch.dtype) -> None:
    """`save` of weights wherever they lie, holding one shard at a time."""
    table = rules(weights.config)
    assert table.keys() == {name for name, _ in skeleton(weights.config).named_parameters()}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, rule in table.items():
            for theirs, part in zip(rule.names, rule.split(weights.read(name)), strict=True):
                yield theirs, part.to(dtype).contiguous()

    write_shards(tensors(), folder)
    write_json(folder / "config.json", config_to_json(weights.config, dtype))


def write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write named tensors in shards with their index, holding one shard at a time."""
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        path = folder / f"model-{len(shards):05d}.safetensors"
        with naming_full_disk(path):
            save_file(shard, path, metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > MAX_SHARD_BYTES:
            flush()
            size = 0
        # safetensors refuses tensors that share memory, as q, k and v do. One that has its own is not copied: a layer's
        # experts are gigabytes.
        shares = tensor.untyped_storage().nbytes() != tensor.nbytes
        shard[name] = tensor.clone() if shares else tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for index, name in enumerate(names):
        (folder / f"model-{index:05d}.safetensors").replace(folder / name)
    weight_map = {tensor: name for name, held in zip(names, shards, strict=True) for tensor in held}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def load(folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Transformer:
    """Open a folder's weights as a `Transformer`, tensor by tensor; `dtype` None keeps the stored one."""
    return assemble(open_folder(folder), dtype=dtype, device=device)


def open_folder(folder: Path) -> Weights:
    """The folder's weights, checked by name, shape and place before any is read."""
    config = config_from_json(folder)
    if "quantization_config" in read_json(folder / "config.json"):
        raise HerdError(f"{folder} is quantised: it can be run, but not trained; give the folder that it was made from")
    table, shapes = rules(config), dict(skeleton(config).named_parameters())
    wanted = {
        theirs: part.shape
        for name, rule in table.items()
        for theirs, part in zip(rule.names, rule.split(shapes[name]), strict=True)
    }
    found = stored_tensors(folder)
    check(folder, found, wanted)
    return Weights(
        config=config,
        dtype=found[table["embedding.weight"].names[0]].dtype,
        read=lambda name: table[name].join([found[theirs].read() for theirs in table[name].names]),
    )


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder's safetensors files by name: of those that the index tells, or of the only one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists() and (folder / "model.safetensors").exists():
        return open_safetensors(folder / "model.safetensors")
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or any(Path(str(file)).name != file for file in weight_map.values()):
        raise HerdError(f"{index} does not tell the file of each tensor: restore it or write the folder again")
    found: dict[str, Stored] = {}
    for file in sorted(set(weight_map.values())):
        held = open_safetensors(folder / file)
        told = {name for name, where in weight_map.items() if where == file}
        problems = [f"{name} is missing, though the index tells it" for name in sorted(told - held.keys())]
        refuse(folder / file, problems + [f"{name} is not in the index" for name in sorted(held.keys() - told)])
        found |= held
    return found


def save_processor(config: ModelConfig, folder: Path) -> None:
    """generation_config.json; and for pictures preprocessor_config.json and processor_config.json."""
    special = config.special
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": special.bos,
            "eos_token_id": list(special.stop),
            "pad_token_id": special.pad,
            "do_sample": False,
        },
    )
    vision = config.vision
    if vision is None:
        return
    image_processor = {
        "image_processor_type": "Llama4ImageProcessorFast",
        "processor_class": "Llama4Processor",
        "size": {"height": vision.image_size, "width": vision.image_size},
        "max_patches": vision.max_tiles,
        "resize_to_max_canvas": False,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
    }
    write_json(folder / "preprocessor_config.json", image_processor)
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "Llama4Processor",
            "patch_size": vision.patch_size,
            "pixel_shuffle_ratio": 0.5,
            "image_token": "<|image|>",
            "fake_image_token": "<|image|>",
        },
    )
