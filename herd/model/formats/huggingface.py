"""The Hugging Face Llama 4 folder: the only weight format that Herd writes as its own.

`save` streams shard by shard, `load` tensor by tensor; names and layouts are transformers' (gate and up fused for
routed experts, apart elsewhere; q, k, v apart). Loading is strict: every missing, extra or misshapen tensor is named.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from herd.config import ModelConfig, VisionConfig
from herd.core.files import naming_full_disk, read_json, write_json
from herd.errors import HerdError
from herd.model.formats.config_json import config_from_json, config_to_json, is_tied
from herd.model.formats.stored import Stored, open_safetensors
from herd.model.formats.weights import Weights, assemble, check, common_dtype, plain_names, refuse, skeleton
from herd.model.transformer import Transformer

MAX_SHARD_BYTES = 4_000_000_000


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one of our parameters is stored in the folder: the names there, and the way there and back."""

    names: tuple[str, ...]
    split: Callable[[Tensor], list[Tensor]]
    join: Callable[[list[Tensor]], Tensor]


# Every rule joins along the first axis: see `Weights.stored`.


def _plain(name: str) -> Rule:
    return Rule(names=(name,), split=lambda x: [x], join=lambda xs: xs[0])


def _rows(names: tuple[str, ...], sizes: list[int]) -> Rule:
    return Rule(names=names, split=lambda x: list(x.split(sizes)), join=torch.cat)


def rules(config: ModelConfig) -> dict[str, Rule]:
    """For every parameter of `Transformer`, where it is in a Hugging Face folder."""
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
    """`save` of weights wherever they are, holding one shard at a time."""
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
    """Open a folder's weights as a `Transformer`, tensor by tensor; `dtype` None keeps the stored one, of a mix
    the one from `common_dtype`."""
    return assemble(open_folder(folder), dtype=dtype, device=device)


def open_folder(folder: Path) -> Weights:
    """The folder's weights, checked by name, shape and place before any is read."""
    config = config_from_json(folder)
    if "quantization_config" in read_json(folder / "config.json"):
        raise HerdError(f"{folder} is quantised: it can be run, but not trained; give the folder that it was made from")
    table, shapes = rules(config), dict(skeleton(config).named_parameters())
    found = plain_names(folder, stored_tensors(folder), (theirs for rule in table.values() for theirs in rule.names))
    if is_tied(folder) and table["unembedding.weight"].names[0] not in found:
        table["unembedding.weight"] = table["embedding.weight"]
    wanted = {
        theirs: part.shape
        for name, rule in table.items()
        for theirs, part in zip(rule.names, rule.split(shapes[name]), strict=True)
    }
    check(folder, found, wanted)
    return Weights(
        config=config,
        dtype=common_dtype(
            [found[name].dtype for name in wanted],
            read_json(folder / "config.json"),
            found[table["embedding.weight"].names[0]].dtype,
        ),
        read=lambda name: table[name].join([found[theirs].read() for theirs in table[name].names]),
        stored=lambda name: [found[theirs] for theirs in table[name].names],
    )


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder's safetensors files by name: of those in the index, or of the only one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists() and (folder / "model.safetensors").exists():
        return open_safetensors(folder / "model.safetensors")
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or any(Path(str(file)).name != file for file in weight_map.values()):
        raise HerdError(f"{index} does not name the file of each tensor: restore it or write the folder again")
    found: dict[str, Stored] = {}
    for file in sorted(set(weight_map.values())):
        held = open_safetensors(folder / file)
        listed = {name for name, where in weight_map.items() if where == file}
        problems = [f"{name} is missing, though it is in the index" for name in sorted(listed - held.keys())]
        refuse(folder / file, problems + [f"{name} is not in the index" for name in sorted(held.keys() - listed)])
        found |= held
    return found


def save_processor(config: ModelConfig, folder: Path, *, parent: Path | None = None) -> None:
    """generation_config.json; and for pictures preprocessor_config.json and processor_config.json.

    Sampling and stop tokens that the folder `parent` asks for are kept.
    """
    special = config.special
    settings = {
        "bos_token_id": special.bos,
        "eos_token_id": list(special.stop),
        "pad_token_id": special.pad,
        "do_sample": False,
    }
    if parent is not None and (own := parent / "generation_config.json").exists():
        settings |= read_json(own)
    write_json(folder / "generation_config.json", settings)
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
