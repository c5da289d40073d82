"""config.json of a Hugging Face Llama 4 folder, there and back.

Every form that transformers has written since 4.51 is read, the published files among them: an absent field has the
default of transformers' own class, and a value that Herd cannot compute is refused by name.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from herd.config import RELEASED_IDS, RELEASED_VOCAB, ModelConfig, MoEConfig, RopeScaling, SpecialIds, VisionConfig
from herd.core.files import read_json
from herd.errors import HerdError

TEXT_DEFAULTS = {
    "model_type": "llama4_text",
    "vocab_size": 202_048,
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16_384,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072,
    "hidden_act": "silu",
    "attention_bias": False,
}
"""Of absent fields, as in Llama4TextConfig of transformers 4.51 to 5.23; so are the following."""
VISION_DEFAULTS = {
    "model_type": "llama4_vision_model",
    "hidden_size": 768,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "intermediate_size": 5632,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "vision_output_dim": 7680,
    "image_size": 448,
    "patch_size": 14,
    "num_channels": 3,
    "pixel_shuffle_ratio": 0.5,
    "norm_eps": 1e-5,
    "hidden_act": "gelu",
}
IMAGE_DEFAULTS = {
    "max_patches": 16,
    "resize_to_max_canvas": False,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
}
"""Of Llama4ImageProcessor; herd.data.media.image has no other values of all but the first."""
MAY_BE_ZERO = {"num_local_experts", "num_experts_per_tok", "interleave_moe_layer_step"}
"""They are in a model without mixtures, such as Llama Guard 4."""
KINDS: dict[type, str] = {bool: "true or false", int: "a positive whole number", float: "a number", str: "a string"}


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
        "attn_temperature_tuning": config.temperature_tuning,
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


def config_from_json(source: Path) -> ModelConfig:
    """Read `source`, a config.json or the folder that holds it, and the ids and image settings beside it.

    Raises HerdError for values that Herd cannot honour. A file of `llama4_text` is a model of text alone.
    """
    path = source if source.is_file() else source / "config.json"
    other = "a GGUF file" if source.suffix == ".gguf" else "in Meta's layout"
    if source.suffix == ".gguf" or ((source / "params.json").exists() and not path.exists()):
        raise HerdError(
            f"{source} is {other}, not a folder of Hugging Face's: `herd convert {source} FOLDER` makes one"
        )
    raw = read_json(path)
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in {"llama4", "llama4_text"}:
        raise HerdError(f"{path}: model_type={kind!r} is not 'llama4' (`herd adopt` brings dense Llamas home)")
    multimodal = kind == "llama4"
    given, where = (_part(raw, "text_config", path), f"{path}: text_config.") if multimodal else (raw, f"{path}: ")
    text = _filled(given, TEXT_DEFAULTS, where)
    for key in ("model_type", "hidden_act", "attention_bias"):
        _require(text[key] == TEXT_DEFAULTS[key], text, key, where)
    layers, max_positions = text["num_hidden_layers"], text["max_position_embeddings"]
    nope_every, moe_every = _nope_every(given, text, where), _moe_every(given, text, where)
    least = 1 if moe_every > layers else 0  # a model without mixtures names no experts, a config always has one
    theta, scaling = read_rope(given, where, default_theta=500_000.0)
    return ModelConfig(
        vocab_size=text["vocab_size"],
        special=_special_ids(path, raw, given, text["vocab_size"]),
        dim=text["hidden_size"],
        num_layers=layers,
        num_heads=text["num_attention_heads"],
        num_kv_heads=_unless_null(given, "num_key_value_heads", text, text["num_attention_heads"]),
        head_dim=_unless_null(given, "head_dim", text, text["hidden_size"] // text["num_attention_heads"]),
        dense_ffn_dim=text["intermediate_size_mlp"],
        moe=MoEConfig(
            num_experts=max(least, text["num_local_experts"]),
            ffn_dim=text["intermediate_size"],
            top_k=max(least, text["num_experts_per_tok"]),
            every=moe_every,
        ),
        vision=_vision(raw, path) if multimodal else None,
        nope_every=nope_every,
        chunk_size=max_positions
        if _is_whole(given, layers, nope_every, where)
        else _unless_null(given, "attention_chunk_size", text, max_positions),
        qk_norm=text["use_qk_norm"],
        temperature_tuning=text["attn_temperature_tuning"],
        temperature_floor=text["floor_scale"],
        temperature_scale=text["attn_scale"],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=text["rms_norm_eps"],
        max_positions=max_positions,
    )


def is_tied(folder: Path) -> bool:
    """Whether config.json ties the unembedding to the embedding."""
    raw = read_json(folder / "config.json")
    return bool(raw.get("tie_word_embeddings") or raw.get("text_config", {}).get("tie_word_embeddings"))


def read_rope(given: Mapping[str, Any], where: str, *, default_theta: float) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotation: of `rope_parameters`, before transformers 5 `rope_theta` and `rope_scaling`.

    Raises HerdError where two of them differ, and for a scaling that the Llama 4 layout does not know.
    """
    parts = {key: given[key] for key in ("rope_parameters", "rope_scaling") if given.get(key)}
    for key, part in parts.items():
        if not isinstance(part, dict) or any(isinstance(value, dict) for value in part.values()):
            raise HerdError(f"{where}{key}={part!r} is not supported: one rotation for all layers is")
    scalings = {key: _scaling(part, where + key) for key, part in parts.items()}
    thetas = {key: part["rope_theta"] for key, part in parts.items() if part.get("rope_theta") is not None}
    if given.get("rope_theta") is not None:
        thetas["rope_theta"] = given["rope_theta"]
    for found in (scalings, thetas):
        if len(set(found.values())) > 1:
            raise HerdError(f"{where}{' and '.join(found)} differ: keep those that the model was trained with")
    for part in (given, *parts.values()):
        if part.get("partial_rotary_factor") not in {None, 1}:
            raise HerdError(
                f"{where}partial_rotary_factor={part['partial_rotary_factor']!r} is not supported: "
                "the Llama 4 layout rotates whole heads"
            )
    theta = _value(next(iter(thetas.values()), None), default_theta, f"{where}rope_theta")
    return theta, next(iter(scalings.values()), None)


def _scaling(part: Mapping[str, Any], where: str) -> RopeScaling | None:
    names = {part[key] for key in ("rope_type", "type") if part.get(key) is not None} or {"default"}
    if names == {"default"}:
        return None
    if names != {"llama3"}:
        kinds = " and ".join(sorted(map(repr, names)))
        raise HerdError(f"{where}: RoPE scaling of type {kinds} has no place in the Llama 4 layout, only 'llama3' has")

    def number(name: str, kind: Any) -> Any:
        if part.get(name) is None:
            raise HerdError(f"{where} lacks {name}, which scaling of type 'llama3' has")
        return _value(part[name], kind, f"{where}.{name}")

    return RopeScaling(
        factor=number("factor", 1.0),
        low_freq_factor=number("low_freq_factor", 1.0),
        high_freq_factor=number("high_freq_factor", 1.0),
        original_max_positions=number("original_max_position_embeddings", 1),
    )


def _part(raw: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    part = raw.get(key)
    if not isinstance(part, dict | None):
        raise HerdError(f"{path}: {key}={part!r} is not an object")
    return part or {}


def _filled(given: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `defaults` as given."""
    return {key: _value(given.get(key), default, where + key) for key, default in defaults.items()}


def _value(value: Any, default: Any, where: str) -> Any:
    """`value` in the type of `default`, which is also used for null."""
    if value is None:
        return default
    kind = type(default)
    if kind is bool:
        fits = isinstance(value, bool | int)  # 4.51 wrote attn_temperature_tuning: 4
    elif kind in {int, float}:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        least = 0 if kind is float or where.endswith(tuple(MAY_BE_ZERO)) else 1
        fits = number and value >= least and kind(value) == value
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise HerdError(f"{where}={value!r} is not {KINDS.get(kind, 'a list')}")
    return kind(value)


def _unless_null(given: Mapping[str, Any], key: str, filled: Mapping[str, Any], null: int) -> int:
    """The field where it is given or absent; `null` where it is null, which means something of its own there."""
    return null if key in given and given[key] is None else int(filled[key])


def _require(holds: bool, given: Mapping[str, Any], key: str, where: str) -> None:
    if not holds:
        raise HerdError(f"{where}{key}={given[key]!r} is not supported")


def _interval(marked: list[bool], stated: int) -> int | None:
    """Every how many layers one is marked: `stated` if that holds, else what the marks show; None: no fixed number."""
    first = marked.index(True) + 1 if True in marked else len(marked) + 1
    fitting = (n for n in (stated, first) if n and marked == [layer % n == n - 1 for layer in range(len(marked))])
    return next(fitting, None)


def _nope_every(given: Mapping[str, Any], text: Mapping[str, Any], where: str) -> int:
    """From `no_rope_layers`, which counts where it is not empty and has a 0 for each layer without positions."""
    layers, stated = text["num_hidden_layers"], text["no_rope_layer_interval"]
    rotated = _value(given.get("no_rope_layers"), [], f"{where}no_rope_layers")[:layers]
    every = _interval([not one for one in rotated], stated) if rotated else stated
    _require(every is not None and len(rotated) in {0, layers}, given, "no_rope_layers", where)
    return int(every or 0)


def _moe_every(given: Mapping[str, Any], text: Mapping[str, Any], where: str) -> int:
    """From `moe_layers`, which counts where it is given."""
    layers, stated = text["num_hidden_layers"], text["interleave_moe_layer_step"]
    if given.get("moe_layers") is None:
        return int(stated or layers + 1)
    mixtures = _value(given["moe_layers"], [], f"{where}moe_layers")
    every = _interval([layer in mixtures for layer in range(layers)], stated)
    _require(every is not None, given, "moe_layers", where)
    return int(every or 0)


def _is_whole(given: Mapping[str, Any], layers: int, nope_every: int, where: str) -> bool:
    """Whether `layer_types` lets the layers with positions see the whole past, whatever the chunk."""
    if given.get("layer_types") is None:
        return False
    kinds = _value(given["layer_types"], [], f"{where}layer_types")[:layers]
    local = [kind for layer, kind in enumerate(kinds) if (layer + 1) % nope_every]
    far = [kind for layer, kind in enumerate(kinds) if (layer + 1) % nope_every == 0]
    known = set(local) in ({"chunked_attention"}, {"full_attention"}, set()) and set(far) <= {"full_attention"}
    _require(known and len(kinds) == layers, given, "layer_types", where)
    return "full_attention" in local


def _special_ids(path: Path, raw: Mapping[str, Any], given: Mapping[str, Any], vocab_size: int) -> SpecialIds:
    """Ids from generation_config.json, from the top of config.json or from its text_config."""
    beside = path.with_name("generation_config.json")
    generation = read_json(beside) if beside.exists() else {}

    def first(name: str, default: Any) -> Any:
        found = (part[name] for part in (generation, raw, given) if part.get(name) is not None)
        return next(found, default)

    ends = first("eos_token_id", 2)
    ends = list(dict.fromkeys(ends)) if isinstance(ends, list) else [ends]
    bos, pad = first("bos_token_id", 1), first("pad_token_id", None)
    pad = pad[0] if isinstance(pad, list) and pad else pad
    if (bos, ends, vocab_size) == (RELEASED_IDS.bos, [RELEASED_IDS.end_of_text], RELEASED_VOCAB):
        # A released base model names the end of text alone; fine-tuned on chats it ends as the instruct models do.
        ends = list(RELEASED_IDS.stop)
    pictures = {
        field: raw.get(name, getattr(RELEASED_IDS, field))
        for field, name in (
            ("image_start", "boi_token_index"),
            ("image_end", "eoi_token_index"),
            ("patch", "image_token_index"),
        )
        if raw is not given
    }
    for token in (bos, *ends, *pictures.values()):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise HerdError(f"{path}: {token!r} is no id of a token: the vocabulary has {vocab_size:,}")
    if not 1 <= len(ends) <= 3:
        raise HerdError(f"{path}: eos_token_id={ends!r} must name one to three tokens that end an answer")
    return SpecialIds(
        bos=bos,
        end_of_text=ends[0],
        eom=ends[min(1, len(ends) - 1)],
        eot=ends[-1],
        pad=pad if type(pad) is int and 0 <= pad < vocab_size else ends[-1],
        **pictures,
    )


def _vision(raw: Mapping[str, Any], path: Path) -> VisionConfig:
    where = f"{path}: vision_config."
    given = _part(raw, "vision_config", path)
    sides = {key: given[key][0] for key in ("image_size", "patch_size") if _is_square(given.get(key))}
    vision = _filled(given | sides, VISION_DEFAULTS, where)
    for key in ("model_type", "hidden_act", "num_channels", "pixel_shuffle_ratio"):
        _require(vision[key] == VISION_DEFAULTS[key], vision, key, where)
    for key in ("projector_input_dim", "vision_output_dim"):
        _require(vision[key] == vision["projector_output_dim"], vision, key, where)
    theta, scaling = read_rope(given, where, default_theta=10_000.0)
    if scaling is not None:
        raise HerdError(f"{where}rope_parameters scale the rotation, which is not supported of an encoder")
    config = VisionConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        dim=vision["hidden_size"],
        num_layers=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        adapter_dim=vision["projector_output_dim"],
        max_tiles=_max_tiles(path.parent, vision["image_size"]),
        rope_theta=theta,
        norm_eps=vision["norm_eps"],
    )
    _require(vision["intermediate_size"] == config.mlp_dim, vision, "intermediate_size", where)
    return config


def _is_square(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] == value[1]


def _max_tiles(folder: Path, image_size: int) -> int:
    """The limit of the folder's image processor, whose other settings must be those of herd.data.media.image."""
    path, given = folder / "preprocessor_config.json", {}
    nested = folder / "processor_config.json"  # transformers 5 writes the image processor into it, and reads it first
    if nested.exists() and isinstance(read_json(nested).get("image_processor"), dict):
        path, given = nested, read_json(nested)["image_processor"]
    elif path.exists() or any(folder.glob("*.safetensors")):  # a config alone is one to plan with
        given = read_json(path)
    where = f"{path}: "
    settings = _filled(given, IMAGE_DEFAULTS, where)
    for key, only in IMAGE_DEFAULTS.items():
        same = math.isclose(settings[key], only) if isinstance(only, float) else settings[key] == only
        _require(same or key == "max_patches", settings, key, where)
    size = given.get("size") or {"height": image_size, "width": image_size}
    _require(size == {"height": image_size, "width": image_size}, given, "size", where)
    return int(settings["max_patches"])
