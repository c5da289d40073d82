"""config.json of a Hugging Face Llama 4 folder, there and back."""

from pathlib import Path
from typing import Any

import torch

from herd.config import ModelConfig, MoEConfig, RopeScaling, SpecialIds, VisionConfig
from herd.core.errors import HerdError
from herd.core.files import read_json


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
