"""config.json of the released Llama 4 models, as published and as later versions of transformers write it."""

import copy
from typing import Any

SCOUT_SCALING = {
    "factor": 16.0,
    "high_freq_factor": 1.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
"""As in Scout-Instruct; the base model's has 8, 4 and 1."""
PREPROCESSOR: dict[str, Any] = {
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "do_center_crop": None,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Llama4ImageProcessorFast",
    "image_std": [0.5, 0.5, 0.5],
    "input_data_format": None,
    "max_patches": 16,
    "processor_class": "Llama4Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "resize_to_max_canvas": False,
    "return_tensors": None,
    "size": {"height": 336, "width": 336},
}
"""The released preprocessor_config.json."""
PROCESSOR_5: dict[str, Any] = {
    "fake_image_token": "<|image|>",
    "image_processor": {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Llama4ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_patches": 16,
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "resize_to_max_canvas": False,
        "size": {"height": 336, "width": 336},
    },
    "image_token": "<|image|>",
    "patch_size": 14,
    "processor_class": "Llama4Processor",
}
"""processor_config.json as Llama4Processor of transformers 5.23 saves it; no preprocessor_config.json is beside it."""
GENERATION = {
    "bos_token_id": 200000,
    "do_sample": True,
    "eos_token_id": [200001, 200007, 200008],
    "pad_token_id": 200018,
    "temperature": 0.6,
    "top_p": 0.9,
    "transformers_version": "4.51.0.dev0",
}
VISION: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1408,
    "image_size": 336,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "model_type": "llama4_vision_model",
    "multi_modal_projector_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 34,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "projector_dropout": 0.0,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "rope_theta": 10000,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "vision_output_dim": 4096,
}
TEXT: dict[str, Any] = {
    "_attn_implementation_autoset": True,
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.0,
    "bos_token_id": 200000,
    "eos_token_id": [200001, 200007, 200008],
    "for_llm_compressor": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 1,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "max_position_embeddings": 10485760,
    "model_type": "llama4_text",
    "no_rope_layers": [],
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "output_router_logits": False,
    "pad_token_id": 200018,
    "rms_norm_eps": 1e-05,
    "rope_scaling": SCOUT_SCALING,
    "rope_theta": 500000.0,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 202048,
}
"""Of Scout-Instruct: no attn_scale, floor_scale, attn_temperature_tuning, moe_layers or no_rope_layer_interval."""
LATER = {
    "attn_scale": 0.1,
    "attn_temperature_tuning": 4,
    "floor_scale": 8192,
    "moe_layers": list(range(48)),
    "no_rope_layers": [1, 1, 1, 0] * 12,
}
"""What transformers 4.51 writes when it saves the same."""
LAYER_TYPES = {"layer_types": [*["chunked_attention"] * 3, "full_attention"] * 12}
WITHOUT_MIXTURES = {"interleave_moe_layer_step": 0, "moe_layers": [], "num_experts_per_tok": 0, "num_local_experts": 0}


def whole(text: dict[str, Any], vision: dict[str, Any] = VISION) -> dict[str, Any]:
    """A config.json of text and pictures."""
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": 200080,
        "eoi_token_index": 200081,
        "image_token_index": 200092,
        "model_type": "llama4",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0.dev0",
        "vision_config": vision,
    }


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


FORMS: dict[str, dict[str, Any]] = {
    "scout-instruct": whole(TEXT),
    "scout, saved by 4.51": whole(
        {
            **TEXT,
            **LATER,
            "eos_token_id": 200001,
            "max_position_embeddings": 262144,
            "rope_scaling": SCOUT_SCALING | {"factor": 8.0, "high_freq_factor": 4.0},
        }
    ),
    "maverick": whole(
        {
            **TEXT,
            "interleave_moe_layer_step": 2,
            "max_position_embeddings": 1048576,
            "num_local_experts": 128,
            "rope_scaling": None,
            "use_qk_norm": False,
        }
    ),
    "llama-guard-4": whole(
        {**TEXT, **LATER, **WITHOUT_MIXTURES, "attention_chunk_size": None, "intermediate_size_mlp": 8192}
    ),
    "without global layers": whole(
        {**TEXT, **LATER, **WITHOUT_MIXTURES, "attention_chunk_size": None, "no_rope_layers": [1] * 48}
    ),
    "saved by 4.57": whole(
        {**TEXT, **LATER, **LAYER_TYPES, "attn_temperature_tuning": True, "dtype": "bfloat16"},
        {**without(VISION, "vision_feature_layer"), "_vision_feature_layer": -1},
    ),
    "saved by 5.23": whole(
        {
            **without(TEXT, "rope_scaling", "rope_theta", "torch_dtype"),
            **LATER,
            **LAYER_TYPES,
            "attn_temperature_tuning": True,
            "no_rope_layer_interval": 4,
            "rope_parameters": SCOUT_SCALING | {"rope_theta": 500000.0},
            "tie_word_embeddings": False,
        },
        {
            **without(VISION, "rope_theta", "vision_feature_layer"),
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    ),
    "all layers see the whole past": whole(
        {**TEXT, **LATER, "attn_temperature_tuning": False, "layer_types": ["full_attention"] * 48}
    ),
    "text alone, saved by 4.51.3": {
        **TEXT,
        **LATER,
        "architectures": ["Llama4ForCausalLM"],
        "cache_implementation": "hybrid",
        "transformers_version": "4.51.3",
    },
}
"""By where they come from."""


def small(form: dict[str, Any]) -> dict[str, Any]:
    """The same form with small sizes: four layers, chunks of 16, ids below 300."""
    raw = copy.deepcopy(form)
    sizes = {
        "attention_chunk_size": 16,
        "bos_token_id": 1,
        "eos_token_id": [2, 3, 4],
        "floor_scale": 4,
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 48,
        "intermediate_size_mlp": 96,
        "max_position_embeddings": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "pad_token_id": 5,
        "vocab_size": 300,
    }
    text = raw.get("text_config", raw)
    for name, size in sizes.items():
        if text.get(name):  # what is absent, null or 0 stays so
            text[name] = size
    for name in ("moe_layers", "no_rope_layers", "layer_types"):
        if name in text:
            text[name] = text[name][:4]
    for name in ("rope_scaling", "rope_parameters"):
        if text.get(name):
            text[name]["original_max_position_embeddings"] = 32
    if "vision_config" in raw:
        raw |= {"boi_token_index": 6, "eoi_token_index": 7, "image_token_index": 8}
        sides = {"image_size": 56, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2}
        widths = dict.fromkeys(("projector_input_dim", "projector_output_dim", "vision_output_dim"), 48)
        raw["vision_config"] |= sides | widths | {"num_attention_heads": 2}
    return raw
