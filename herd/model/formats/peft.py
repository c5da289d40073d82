"""Adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors.

    base_model.model.MODULE.lora_A.weight               [K, in], of a linear layer; lora_B [out, K]
    base_model.model.….experts.lora_A.weight            [E * K, out], of the stacked matrices [E, in, out] of experts
    base_model.model.….experts.lora_B.weight            [in, K * E], the expert running fastest

Where both stacks of a mixture have adapters, as PEFT nests its wrappers, `experts` is down_proj and
`experts.base_layer` is gate_up_proj. PEFT before 0.19 has the stacks' A and B the other way round (A [E * K, in]): read
too. Of PEFT's variants rsLoRA is known, and ranks and alphas by pattern; everything else that changes what an adapter
computes is refused by name. Source: PEFT 0.21.2 (tuners/lora, ParamWrapper), held against it in tests.
"""

# K rank, E experts

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from herd.config import LoraConfig, ModelConfig
from herd.core.files import naming_full_disk, read_json, write_json
from herd.errors import HerdError
from herd.model.formats.huggingface import rules
from herd.model.formats.stored import Stored, open_safetensors
from herd.model.formats.weights import Weights, refuse, skeleton

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
VERSION = "0.21.2"
"""Of PEFT, whose layout is written."""
TRANSPOSED_SINCE = (0, 19)
"""Since this version the A of experts is on the side of their outputs."""
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_parameters"}
NOTES = {
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "loftq_config"),
    *("eva_config", "megatron_core", "qalora_group_size", "ensure_weight_tying", "runtime_config"),
}
"""Keys that change nothing of what a trained adapter computes."""
WORDS = {
    "use_dora": "DoRA",
    "modules_to_save": "modules saved whole",
    "lora_bias": "biases",
    "bias": "biases",
    "trainable_token_indices": "trained tokens",
    "alora_invocation_tokens": "activated LoRA",
}
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights after which the base is what it was."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The update of one matrix of a Hugging Face folder: `scale * left @ right`, in the matrix's own orientation."""

    left: Tensor
    """[out, K] of a linear layer; [E, in, K] of experts' stacked matrices [E, in, out]."""
    right: Tensor
    """[K, in]; [E, K, out]."""
    scale: float

    @property
    def rank(self) -> int:
        return self.left.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return (*self.left.shape[:-1], self.right.shape[-1])


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises HerdError by the name of what Herd does not do."""
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise HerdError(f"{folder}: an adapter of the kind {kind!r}, only LoRA is read")
    neutral = {**dict.fromkeys(("bias",), "none"), "fan_in_fan_out": False}
    for key, value in config.items():
        if key in READ | NOTES or not value or value == neutral.get(key):
            continue
        if key == "init_lora_weights":
            if value not in PLAIN_STARTS:
                raise HerdError(
                    f"{folder}: its training began with init_lora_weights={value!r}, which changes the base: merge it "
                    "with PEFT, and take the model that this gives"
                )
            continue
        words = f" ({WORDS[key]})" if key in WORDS else ""
        raise HerdError(
            f"{folder}: {key}={json.dumps(value)}{words} is not read: merge it with PEFT, and take the model"
        )
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or config[key] <= 0:
            raise HerdError(f"{folder / CONFIG}: {key}={config.get(key)!r} must be a number above 0")
    for key in ("rank_pattern", "alpha_pattern"):
        try:
            valid = all(float(value) > 0 and re.compile(pattern) for pattern, value in (config.get(key) or {}).items())
        except (AttributeError, TypeError, ValueError, re.error):
            valid = False
        if not valid:
            patterns = json.dumps(config[key])
            raise HerdError(f"{folder / CONFIG}: {key}={patterns} must be patterns with numbers above 0")
    return config


def read_pairs(folder: Path, config: ModelConfig) -> dict[str, Pair]:
    """The updates of an adapter folder for a base of the shape `config`, by the names of a Hugging Face folder's
    tensors. Raises HerdError for what is missing, has no place or does not fit."""
    adapter = read_config(folder)
    path = folder / FILE
    if not path.exists():
        held = ", its weights are a pickle: save it again as safetensors" if any(folder.glob("*.bin")) else ""
        raise HerdError(f"{path} is missing{held or ': copy the folder again, whole'}")
    shapes = matrix_shapes(config)
    halves, problems = by_matrix(adapter, open_safetensors(path), shapes)
    pairs: dict[str, Pair] = {}
    for name, found in sorted(halves.items()):
        if len(found) < 2:
            problems.append(f"{name} has lora_{next(iter(found))} only")
            continue
        pair = orient(adapter, name, shapes[name], found["A"].read().float(), found["B"].read().float())
        if pair is None:
            held = " and ".join(str(found[half].shape) for half in "AB")
            problems.append(
                f"the adapter of {name}, {held}, does not fit {shapes[name]} and the rank in {CONFIG}: it is of "
                "another base"
            )
        else:
            pairs[name] = pair
    refuse(path, problems)
    if not pairs:
        raise HerdError(f"{path} holds no adapters")
    return pairs


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The matrices of a Hugging Face folder by name."""
    shapes = dict(skeleton(config).named_parameters())
    return {
        theirs: tuple(part.shape)
        for ours, rule in rules(config).items()
        for theirs, part in zip(rule.names, rule.split(shapes[ours]), strict=True)
        if part.ndim >= 2
    }


def by_matrix(
    adapter: Mapping[str, Any], stored: Mapping[str, Stored], known: Iterable[str]
) -> tuple[dict[str, dict[str, Stored]], list[str]]:
    """The A and B of each matrix, and what has no place."""
    known, problems = set(known), list[str]()
    targets = {str(target).rpartition(".")[2] for target in adapter.get("target_parameters") or ()}
    nested = {key.split(".base_layer.")[0] for key in stored if ".experts.base_layer." in key}
    halves: dict[str, dict[str, Stored]] = {}
    for key, tensor in stored.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", key)
        module = match[1] if match else ""
        if module.endswith(".experts.base_layer"):
            name = module.removesuffix("base_layer") + "gate_up_proj"
        elif module.endswith(".experts"):
            alone = PREFIX + module not in nested and targets == {"gate_up_proj"}
            name = f"{module}.{'gate_up_proj' if alone else 'down_proj'}"
        else:
            name = f"{module}.weight"
        if match is None or name not in known:
            problems.append(f"{key} has no place in the base")
        else:
            halves.setdefault(name, {})[match[2]] = tensor
    return halves, problems


def orient(adapter: Mapping[str, Any], name: str, shape: tuple[int, ...], A: Tensor, B: Tensor) -> Pair | None:
    """The update of a matrix of this shape by PEFT's A and B; None where they do not fit."""
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or not A.shape[0]:
        return None
    if len(shape) == 2:
        left, right = B, A
    else:
        experts, *sides = shape
        if A.shape[0] % experts:
            return None
        transposed = A.shape[1] == sides[1] if sides[0] != sides[1] else version_of(adapter) >= TRANSPOSED_SINCE
        (A, B) = (A.reshape(experts, -1, A.shape[1]), B.reshape(B.shape[0], -1, experts).permute(2, 0, 1))
        left, right = (B, A) if transposed else (A.mT, B.mT)
    module, rank = name.removesuffix(".weight"), left.shape[-1]
    if rank != by_pattern(adapter, "rank_pattern", module, adapter["r"]):
        return None
    alpha = by_pattern(adapter, "alpha_pattern", module, adapter["lora_alpha"])
    pair = Pair(left=left, right=right, scale=alpha / (rank**0.5 if adapter.get("use_rslora") else rank))
    return pair if pair.shape == shape else None


def version_of(adapter: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the PEFT that wrote an adapter, which records it since 0.18."""
    return tuple(int(number) for number in re.findall(r"\d+", str(adapter.get("peft_version") or "0"))[:2])


def by_pattern(adapter: Mapping[str, Any], key: str, module: str, default: float | int) -> float:
    """The number of the first of a config's patterns that is the end of a module's name, as PEFT matches them."""
    for pattern, value in (adapter.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(default)


def merge(base: Weights, pairs: Mapping[str, Pair], dtype: torch.dtype | None = None) -> Weights:
    """A base's weights with the updates added, in fp32 and then rounded to `dtype`, or the base's if not given."""
    table, target = rules(base.config), dtype or base.dtype

    def read(name: str) -> Tensor:
        whole, rule = base.read(name), table[name]
        if not any(theirs in pairs for theirs in rule.names):
            return whole
        parts = zip(rule.names, rule.split(whole), strict=True)
        return rule.join([add(part, pairs.get(theirs), target) for theirs, part in parts])

    return replace(base, read=read, stored=None)


def add(matrix: Tensor, pair: Pair | None, dtype: torch.dtype) -> Tensor:
    """A matrix and its update; of experts one after the other, as together they may be gigabytes."""
    if pair is None:
        return matrix.to(dtype)
    if matrix.ndim == 2:
        return torch.addmm(matrix.float(), pair.left, pair.right, alpha=pair.scale).to(dtype)
    out = torch.empty(matrix.shape, dtype=dtype)
    for expert, (left, right) in enumerate(zip(pair.left, pair.right, strict=True)):
        out[expert] = torch.addmm(matrix[expert].float(), left, right, alpha=pair.scale)
    return out


def write(folder: Path, pairs: Mapping[str, Pair], lora: LoraConfig, *, base: Path, vision: bool) -> None:
    """Write an adapter folder of updates that were trained with `lora`, in fp32. The caller commits it as a whole."""
    tensors: dict[str, Tensor] = {}
    modules, parameters = set[str](), set[str]()
    for name, pair in pairs.items():
        module, A, B = name.removesuffix(".weight"), pair.right, pair.left
        path = module.split(".")
        if A.ndim == 3:
            parameters.add(".".join(path[-3:]))
            module = ".".join([*path[:-1], *(["base_layer"] if path[-1] == "gate_up_proj" else [])])
            A, B = A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)
        else:
            modules.add(".".join(path[-2:]))
        tensors[f"{PREFIX}{module}.lora_A.weight"] = A.float().contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = B.float().contiguous()
    with naming_full_disk(folder / FILE):
        save_file(tensors, folder / FILE, metadata={"format": "pt"})
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "r": lora.rank,
            "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
            "use_rslora": lora.rslora,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(modules),
            # The encoder's attention has modules of these names too.
            "exclude_modules": r"(.*\.)?vision_model\..*" if vision else None,
            "target_parameters": sorted(parameters) or None,
            "inference_mode": True,
            "peft_version": VERSION,
        },
    )


def from_parameters(config: ModelConfig, values: Mapping[str, Tensor], scale: float) -> dict[str, Pair]:
    """The updates of a model with adapters, from the adapters' parameters by name (see herd.model.lora)."""
    pairs: dict[str, Pair] = {}
    for ours, names, sizes in places(config):
        if f"{ours}A" not in values:
            continue
        A, B = values[f"{ours}A"], values[f"{ours}B"]
        if A.ndim == 3:
            pairs[names[0]] = Pair(left=A, right=B, scale=scale)
            continue
        for name, left, right in zip(names, B.split(sizes), A.chunk(len(names)), strict=True):
            pairs[name] = Pair(left=left, right=right, scale=scale)
    return pairs


def to_parameters(
    config: ModelConfig, pairs: Mapping[str, Pair], wanted: Mapping[str, tuple[int, ...]], scale: float
) -> dict[str, Tensor] | None:
    """The inverse: the adapters' parameters that are `wanted`, by name and shape, for a model with this scale. None
    where the updates are of other matrices, or have another rank."""
    values, used = dict[str, Tensor](), set[str]()
    for ours, names, _ in places(config):
        own = [pairs[name] for name in names if name in pairs]
        if len(own) < len(names) or len({pair.rank for pair in own}) > 1:
            continue
        used |= set(names)
        if own[0].left.ndim == 3:
            values[f"{ours}A"], values[f"{ours}B"] = own[0].left, own[0].right * (own[0].scale / scale)
        else:
            values[f"{ours}A"] = torch.cat([pair.right for pair in own])
            values[f"{ours}B"] = torch.cat([pair.left * (pair.scale / scale) for pair in own])
    values = {name: value.contiguous() for name, value in values.items()}  # as the kernels want parameters
    fits = used == pairs.keys() and {name: tuple(value.shape) for name, value in values.items()} == dict(wanted)
    return values if fits else None


def places(config: ModelConfig) -> Iterator[tuple[str, tuple[str, ...], list[int]]]:
    """Of every matrix that may have adapters: how our parameters A and B begin, the folder's names of the matrices that
    are fused in it, and the outputs of each."""
    shapes = dict(skeleton(config).named_parameters())
    for name, rule in rules(config).items():
        if name.startswith("layers.") and shapes[name].ndim >= 2:
            owner, _, last = name.rpartition(".")
            stack = {"gate_up_EDF": "lora_gate_up_", "down_EFD": "lora_down_"}.get(last, "lora_")
            yield f"{owner}.{stack}", rule.names, [len(part) for part in rule.split(shapes[name])]
