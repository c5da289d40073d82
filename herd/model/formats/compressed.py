"""Writing quantised folders: Hugging Face's Llama 4 folder with low-bit matrices as compressed-tensors stores them.

int4 is its `pack-quantized` (`….weight_packed` int32, `….weight_scale`, `….weight_shape`), int8 its `int-quantized` and
fp8 its `float-quantized` (`….weight`, `….weight_scale`); routed experts are stored one by one, `experts.3.gate_proj`,
as llm-compressor writes them. What a scheme leaves out is bf16. Written shard by shard, one matrix in memory at a time.
herd/model/formats/lowbit.py reads them.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from herd.config import ModelConfig
from herd.core.files import read_json, write_json
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.formats.config_json import config_from_json
from herd.model.formats.lowbit import is_quantized
from herd.model.formats.weights import refuse, wrong_names
from herd.model.quantize import Scheme, quantizable, quantize
from herd.model.transformer import Transformer

FORMATS = {"int4": "pack-quantized", "int8": "int-quantized", "fp8": "float-quantized"}
WEIGHTS = ("*.safetensors", "*.index.json", "config.json", "herd.json", "README.md", "metrics.jsonl")
"""Files of a model folder that a quantised copy has its own of, or none."""


def quantization_config(scheme: Scheme, ignored: list[str]) -> dict[str, Any]:
    """The part of config.json that transformers and vLLM read; `ignored` are linear modules left in bf16."""

    def arguments(bits: int, strategy: str, *, dynamic: bool, group: int | None = None) -> dict[str, Any]:
        kind = "float" if scheme.name == "fp8" else "int"
        given = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": dynamic}
        return given | ({"group_size": group} if group else {})

    int4 = scheme.name == "int4"
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": FORMATS[scheme.name],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": arguments(scheme.bits, "group" if int4 else "channel", dynamic=False, group=scheme.group),
                # Herd rounds int4's activations too; the format has no word for it, and its readers keep bf16.
                "input_activations": None if int4 else arguments(8, "token", dynamic=True),
                "output_activations": None,
            }
        },
        "ignore": ignored,
        "kv_cache_scheme": None,
    }


def write(source: Path, target: Path, scheme: Scheme) -> dict[str, Any]:
    """Write the model folder `source`, quantised, into the folder `target`; gives its sizes in bytes.

    The caller commits the folder as a whole. Files that are not weights are copied.
    """
    if is_quantized(source):
        raise HerdError(f"{source} is quantised already: give the folder that it was made from")
    config = config_from_json(source)
    with torch.device("meta"):
        model = Transformer(config)
    taken = quantizable(model, scheme, config)
    weight_map: dict[str, str] = read_json(source / "model.safetensors.index.json")["weight_map"]
    table = huggingface.rules(config)
    refuse(source, wrong_names(weight_map, (name for rule in table.values() for name in rule.names)))
    ignored: list[str] = []
    sizes = {"packed": 0, "kept": 0, "before": 0}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, rule in table.items():
            for theirs in rule.names:
                # Opened for one tensor at a time: what was read is not kept mapped.
                with safe_open(source / weight_map[theirs], framework="pt", device="cpu") as file:
                    if name.endswith(("_EDF", "_EFD")):
                        pieces = experts(file.get_slice(theirs), theirs, config)
                    else:
                        pieces = iter([(theirs, file.get_tensor(theirs))])
                    for place, weight in pieces:
                        sizes["before"] += weight.nbytes
                        if name in taken:
                            for kind, tensor in packed_tensors(weight, scheme, place):
                                sizes["packed"] += tensor.nbytes
                                yield place.removesuffix("weight") + kind, tensor
                        else:
                            if weight.ndim == 2 and place.endswith(".weight") and "embed_tokens" not in place:
                                ignored.append(place.removesuffix(".weight"))
                            sizes["kept"] += weight.numel() * 2
                            yield place, weight.bfloat16().contiguous()

    huggingface.write_shards(tensors(), target)
    raw = read_json(source / "config.json") | {"dtype": "bfloat16"}
    if "text_config" in raw:  # a model of text alone has its fields at the top
        raw["text_config"] = raw["text_config"] | {"dtype": "bfloat16"}
    raw["quantization_config"] = quantization_config(scheme, ignored)
    write_json(target / "config.json", raw)
    for path in source.iterdir():
        if path.is_file() and not path.name.startswith(".") and not any(map(path.match, WEIGHTS)):
            shutil.copyfile(path, target / path.name)
    return sizes


def experts(stored: Any, theirs: str, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The matrices [out, in] of a fused tensor [E, in, out], one by one, with their names in a quantised folder."""
    base, _, leaf = theirs.rpartition(".")
    for expert in range(config.moe.num_experts):
        whole = stored[expert].T
        if leaf == "gate_up_proj":
            gate, up = whole.chunk(2)
            yield f"{base}.{expert}.gate_proj.weight", gate
            yield f"{base}.{expert}.up_proj.weight", up
        else:
            yield f"{base}.{expert}.down_proj.weight", whole


def packed_tensors(weight: Tensor, scheme: Scheme, name: str) -> Iterator[tuple[str, Tensor]]:
    """What the folder holds of one matrix [out, in]: the end of each name, and the tensor."""
    codes, scale = quantize(weight, scheme, name)
    if scheme.name == "int4":
        yield "weight_packed", codes.contiguous().view(torch.int32)
        yield "weight_shape", torch.tensor(weight.shape)
    else:
        yield "weight", codes.contiguous()
    yield "weight_scale", scale.contiguous()
