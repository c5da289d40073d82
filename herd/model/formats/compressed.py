"""Quantised folders: Hugging Face's Llama 4 folder with low-bit matrices as compressed-tensors stores them.

int4 is its `pack-quantized` (`….weight_packed` int32, `….weight_scale`, `….weight_shape`), int8 its `int-quantized`
and fp8 its `float-quantized` (`….weight`, `….weight_scale`); routed experts stand one by one, `experts.3.gate_proj`,
as llm-compressor writes them. What a scheme leaves out is bf16. Written shard by shard, one matrix in memory at a
time; read straight into the tensors that multiply, so the peak is the packed size and no mapped file beside it.
"""

import json
import re
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from herd.config import ModelConfig
from herd.core.errors import HerdError
from herd.core.files import read_json, write_json
from herd.model.formats import huggingface
from herd.model.formats.config_json import config_from_json
from herd.model.formats.weights import refuse, skeleton, wrong_names
from herd.model.quantize import Packed, Scheme, quantize, replace, replaceable
from herd.model.transformer import Transformer

FORMATS = {"int4": "pack-quantized", "int8": "int-quantized", "fp8": "float-quantized"}
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}
WEIGHTS = ("*.safetensors", "*.index.json", "config.json", "herd.json", "README.md", "metrics.jsonl")
"""Files of a model folder that a quantised copy has its own of, or none."""


def is_quantized(folder: Path) -> bool:
    """Whether config.json tells of low-bit weights."""
    return "quantization_config" in read_json(folder / "config.json")


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


def scheme_from_json(raw: dict[str, Any], where: Path) -> Scheme:
    """The scheme that config.json tells; what Herd cannot multiply by is refused."""
    told = raw["quantization_config"]
    name = {form: name for name, form in FORMATS.items()}.get(told.get("format"))
    groups = list(told.get("config_groups", {}).values())
    if told.get("quant_method") != "compressed-tensors" or name is None or len(groups) != 1:
        form = told.get("format", told.get("quant_method"))
        raise HerdError(f"{where}: quantization {form!r} is not supported, only {', '.join(FORMATS.values())}")
    weights = groups[0]["weights"]
    bits, wanted = weights["num_bits"], 4 if name == "int4" else 8
    if bits != wanted or not weights["symmetric"] or weights.get("actorder"):
        raise HerdError(f"{where}: {bits}-bit {told['format']} weights, asymmetric or reordered, are not supported")
    # Which matrices are packed is read from the tensors, so the scope does not matter here.
    return Scheme(name=name, group=weights.get("group_size") if name == "int4" else None)


def parts_of(name: str, rule: huggingface.Rule, config: ModelConfig) -> list[str]:
    """The modules of the folder whose rows make our matrix `name`, in order; of experts, expert by expert."""
    if not name.endswith(("_EDF", "_EFD")):
        return [theirs.removesuffix(".weight") for theirs in rule.names]
    base = rule.names[0].rpartition(".")[0]
    leaves = ("gate_proj", "up_proj") if name.endswith("gate_up_EDF") else ("down_proj",)
    return [f"{base}.{expert}.{leaf}" for expert in range(config.moe.num_experts) for leaf in leaves]


def write(source: Path, target: Path, scheme: Scheme) -> dict[str, Any]:
    """Write the model folder `source`, quantised, into the folder `target`; gives its sizes in bytes.

    The caller commits the folder as a whole. Files that are not weights are copied.
    """
    if is_quantized(source):
        raise HerdError(f"{source} is quantised already: give the folder that it was made from")
    config = config_from_json(source)
    with torch.device("meta"):
        model = Transformer(config)
    taken = replaceable(model, scheme, config)
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


class Shards:
    """The tensors of a folder, read into memory that is given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weight_map: dict[str, str] = read_json(folder / "model.safetensors.index.json")["weight_map"]

    @cached_property
    def headers(self) -> dict[str, tuple[Path, int, dict[str, Any]]]:
        """Tensor → its file, the byte that it begins at, and what the file's header says of it."""
        found = {}
        for file in sorted(set(self.weight_map.values())):
            path = self.folder / file
            try:
                with path.open("rb") as stream:
                    length = int.from_bytes(stream.read(8), "little")
                    header = json.loads(stream.read(min(length, path.stat().st_size)))
                header.pop("__metadata__", None)
                end = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
            except FileNotFoundError:
                raise HerdError(f"{path} is missing: copy the folder again, whole") from None
            except (ValueError, KeyError, TypeError) as error:
                raise HerdError(f"{path} is damaged ({error}): copy the folder again, whole") from None
            if path.stat().st_size != end:
                raise HerdError(
                    f"{path} is damaged ({path.stat().st_size} bytes of {end}): copy the folder again, whole"
                )
            for name, entry in header.items():
                found[name] = (path, 8 + length + entry["data_offsets"][0], entry)
        return found

    def read(self, name: str) -> Tensor:
        """One tensor in memory of its own."""
        entry = self.headers[name][2]
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill `out`, which must have the stored bytes' number; of packed words, their bytes."""
        path, begin, entry = self.headers[name]
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        if size != out.nbytes:
            raise HerdError(f"{path}: {name} has shape {entry['shape']}, config.json asks for {out.nbytes} bytes")
        with path.open("rb") as stream:
            stream.seek(begin)
            stream.readinto(out.view(torch.uint8).flatten().numpy().data)


def load(folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Transformer:
    """Open a quantised folder; `dtype` is that of the matrices left out, and of the activations."""
    config = config_from_json(folder)
    scheme = scheme_from_json(read_json(folder / "config.json"), folder / "config.json")
    model = skeleton(config)
    shards = Shards(folder)
    names, wanted = shards.weight_map.keys(), set()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    state: dict[str, Tensor] = {}
    tail = "weight_packed" if scheme.name == "int4" else "weight"
    for name, rule in huggingface.rules(config).items():
        parts, shape = parts_of(name, rule, config), shapes[name]
        single = len(shape) == 3  # stands expert by expert
        if f"{parts[0]}.weight_scale" in names:
            packed = Packed(scheme, (shape[0], shape[2], shape[1]) if single else shape)
            ends = [tail, "weight_scale"] + (["weight_shape"] if scheme.name == "int4" else [])
            expected = [f"{part}.{end}" for part in parts for end in ends]
            wanted |= set(expected)
            if all(x in names for x in expected):
                fill(packed, parts, tail, shards)
            replace(model, name, packed.to(device or "cpu"))
            continue
        places = [f"{part}.weight" for part in parts] if single else list(rule.names)
        wanted |= set(places)
        if all(x in names for x in places):
            read = [shards.read(place) for place in places]
            tensor = torch.cat(read).view(shape[0], shape[2], shape[1]).mT.contiguous() if single else rule.join(read)
            if tuple(tensor.shape) != shape:
                raise HerdError(f"{folder}: {' + '.join(places)} has shape {tuple(tensor.shape)}, not {shape}")
            state[name] = tensor.to(device or "cpu", dtype or tensor.dtype)
    refuse(folder, wrong_names(names, wanted))
    model.load_state_dict(state, assign=True, strict=False)
    return model.eval().requires_grad_(False)


def fill(packed: Packed, parts: list[str], tail: str, shards: Shards) -> None:
    """Read the rows of all `parts` into `packed`, one below the other."""
    rows_codes, rows_scale = packed.weight.flatten(0, -2), packed.scale.flatten(0, -2)
    row = 0
    for part in parts:
        count = shards.headers[f"{part}.{tail}"][2]["shape"][0]
        shards.read_into(f"{part}.{tail}", rows_codes[row : row + count])
        shards.read_into(f"{part}.weight_scale", rows_scale[row : row + count])
        row += count
    if row != len(rows_codes):
        raise HerdError(f"{shards.folder}: {re.sub('[.]0[.]', '.*.', parts[0])} has {row} rows of {len(rows_codes)}")
