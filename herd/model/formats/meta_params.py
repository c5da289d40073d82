"""Meta's params.json: the shape of a model as the arguments of the reference's ModelArgs (llama-models 0.3.0, args.py).

It has no hidden widths, but factors that the reference multiplies, truncates and rounds (`hidden_widths`).
"""

from dataclasses import asdict
from math import gcd
from pathlib import Path
from typing import Any

from herd.config import RELEASED_IDS, RELEASED_VOCAB, ModelConfig, MoEConfig, RopeScaling, SpecialIds, VisionConfig
from herd.errors import HerdError

RELEASED = {"ffn_dim_multiplier": 1.2, "ffn_exp": 4.0, "multiple_of": 2048, "auto_scale_F": True}
"""The factors of Scout and Maverick."""
ROPE_POSITIONS = 8192
"""`original_max_positions` that the reference has in its code; its low_freq_factor is 1."""
TRAINED_POSITIONS = 262_144
"""The context that the base models claim, where params.json does not have it."""


def hidden_widths(dim: int, factors: dict[str, Any]) -> tuple[int, int]:
    """Hidden width of dense layers and of an expert, as model.py and moe.py of the reference compute them."""
    multiplier, multiple = factors["ffn_dim_multiplier"], factors["multiple_of"]
    dense = int(multiplier * int(2 * (4 * dim) / 3))
    expert = int(multiplier * int(2 * int(factors["ffn_exp"] * dim) / 3))
    if factors["auto_scale_F"]:  # capacity_factor is 1 and stands for the shared expert
        expert = int(expert / (factors.get("capacity_factor", 1.0) + 1))
    return -(-dense // multiple) * multiple, -(-expert // multiple) * multiple


def factors_of(config: ModelConfig) -> dict[str, Any]:
    """Factors that give the hidden widths: the released ones, or some that are found."""
    wanted = (config.dense_ffn_dim, config.moe.ffn_dim)
    multiple = gcd(*wanted)
    below = (multiple - 1) / 2 - 0.25  # the middle of what is rounded up to a width
    multiplier = (config.dense_ffn_dim - below) / int(2 * (4 * config.dim) / 3)
    found = {
        "ffn_dim_multiplier": multiplier,
        "ffn_exp": 1.5 * (config.moe.ffn_dim - below) / multiplier / config.dim,
        "multiple_of": multiple,
        "auto_scale_F": False,
    }
    for factors in (RELEASED, found):
        if hidden_widths(config.dim, factors) == wanted:
            return factors
    raise HerdError(
        f"dense_ffn_dim={wanted[0]} and moe.ffn_dim={wanted[1]} cannot be expressed by the factors of params.json: "
        "give widths with a larger common divisor"
    )


def params_of(config: ModelConfig) -> dict[str, Any]:
    """params.json of a model; what the reference has fixed in its code and the model has otherwise is refused."""
    vision, scaling = config.vision, config.rope_scaling
    factors = factors_of(config)
    fixed = {
        "head_dim": (config.head_dim, config.dim / config.num_heads),
        "rope_scaling.low_freq_factor": (scaling.low_freq_factor, 1) if scaling else (1, 1),
        "rope_scaling.original_max_positions": (scaling.original_max_positions if scaling else 8192, ROPE_POSITIONS),
        "vision.rope_theta": (vision.rope_theta if vision else 1e4, 1e4),
        "vision.norm_eps": (vision.norm_eps if vision else 1e-5, 1e-5),
    }
    for name, (value, only) in fixed.items():
        if value != only:
            raise HerdError(f"{name}={value} has no place in params.json: Meta's code knows {only:g} only")
    params: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        **{key: value for key, value in factors.items() if key != "auto_scale_F"},
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": scaling is not None,
        "attention_chunk_size": config.chunk_size,
        "nope_layer_interval": config.nope_every,
        "use_qk_norm": config.qk_norm,
        "attn_temperature_tuning": config.temperature_tuning,
        "floor_scale": config.temperature_floor,
        "attn_scale": config.temperature_scale,
        "moe_args": {
            "num_experts": config.moe.num_experts,
            "capacity_factor": 1.0,
            "auto_scale_F": factors["auto_scale_F"],
            "top_k": config.moe.top_k,
            "interleave_moe_layer_step": config.moe.every,
        },
        "herd": {"special": asdict(config.special), "max_positions": config.max_positions},
    }
    if scaling:
        params |= {"rope_scaling_factor": scaling.factor, "rope_high_freq_factor": scaling.high_freq_factor}
    if vision:
        params["herd"]["max_tiles"] = vision.max_tiles
        params["vision_args"] = {
            "image_size": {"height": vision.image_size, "width": vision.image_size},
            "patch_size": {"height": vision.patch_size, "width": vision.patch_size},
            "dim": vision.dim,
            "n_layers": vision.num_layers,
            "n_heads": vision.num_heads,
            "mlp_ratio": vision.mlp_dim / vision.dim,
            "output_dim": vision.adapter_dim,
            "pixel_shuffle_ratio": 0.5,
        }
    return params


def config_from_params(params: dict[str, Any], path: Path) -> ModelConfig:
    """The model of a params.json. Raises HerdError where something is missing or cannot be honoured."""
    try:
        return _config(params, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise HerdError(f"{path} is not a complete params.json of Llama 4: {error!r}") from None


def _config(params: dict[str, Any], path: Path) -> ModelConfig:
    moe, vision, own = params["moe_args"], params["vision_args"], params.get("herd", {})
    if vision["mlp_ratio"] != 4 or vision["pixel_shuffle_ratio"] != 0.5:
        raise HerdError(f"{path}: only mlp_ratio 4 and pixel_shuffle_ratio 0.5 are supported in vision_args")
    if params.get("quantization_args") or params.get("lora_args"):
        raise HerdError(f"{path}: quantised and LoRA checkpoints of Meta are not read: take the bf16 one")
    dense, expert = hidden_widths(params["dim"], params | {"auto_scale_F": True} | moe)
    if own:
        special = SpecialIds(**own["special"])
    elif params["vocab_size"] == RELEASED_VOCAB:
        special = RELEASED_IDS
    else:
        raise HerdError(
            f"{path}: vocab_size={params['vocab_size']} is not the released {RELEASED_VOCAB}, ids are unknown"
        )
    scaling = RopeScaling(
        factor=params.get("rope_scaling_factor") or 16.0,
        low_freq_factor=1.0,
        high_freq_factor=params.get("rope_high_freq_factor") or 1.0,
        original_max_positions=ROPE_POSITIONS,
    )
    max_positions = own.get("max_positions", TRAINED_POSITIONS)
    return ModelConfig(
        vocab_size=params["vocab_size"],
        special=special,
        dim=params["dim"],
        num_layers=params["n_layers"],
        num_heads=params["n_heads"],
        num_kv_heads=params["n_kv_heads"],
        head_dim=params["dim"] // params["n_heads"],
        dense_ffn_dim=dense,
        moe=MoEConfig(
            num_experts=moe["num_experts"],
            ffn_dim=expert,
            top_k=moe.get("top_k", 1),
            every=moe.get("interleave_moe_layer_step", 1),
        ),
        vision=VisionConfig(
            image_size=vision["image_size"]["height"],
            patch_size=vision["patch_size"]["height"],
            dim=vision["dim"],
            num_layers=vision["n_layers"],
            num_heads=vision["n_heads"],
            adapter_dim=vision["output_dim"],
            max_tiles=own.get("max_tiles", 16),
        ),
        nope_every=params["nope_layer_interval"],
        chunk_size=params.get("attention_chunk_size") or max_positions,
        qk_norm=params.get("use_qk_norm", False),
        # Off by default in the reference, on in the released config.json of the same weights.
        temperature_tuning=params.get("attn_temperature_tuning", True),
        temperature_floor=int(params.get("floor_scale", 8192)),
        temperature_scale=params.get("attn_scale", 0.1),
        rope_theta=params["rope_theta"],
        rope_scaling=scaling if params.get("use_scaled_rope") else None,
        norm_eps=params.get("norm_eps", 1e-5),
        max_positions=max_positions,
    )
