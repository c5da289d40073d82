"""A model in any format: the one place that detects formats, and the one way to open any of them.

    a folder with config.json      Hugging Face's layout, its weights as floats or in low bits
    a folder with params.json      Meta's
    a .gguf file                   llama.cpp's, architecture llama4; so is a folder that holds nothing but one
    a folder with adapter_config.json and no config.json    PEFT's: a LoRA adapter, merged into its base as it is opened

An adapter's base is the folder that the adapter records, or one of the same name beside the adapter; its hash must be
the recorded one.

What cannot be opened is named by what it is, with the way out.
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from herd.config import SpecialIds
from herd.core.lineage import hash_of, read_lineage
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.model.formats import huggingface, lowbit, meta, peft
from herd.model.formats.gguf import PART
from herd.model.formats.llama_cpp_file import LlamaCppFile
from herd.model.formats.weights import Weights, assemble
from herd.model.transformer import Transformer

HUGGING_FACE, LOW_BIT, META, GGUF, ADAPTER = "huggingface", "low-bit", "meta", "gguf", "adapter"
"""The formats."""
PICKLES = "PyTorch pickles, which could run code: open it in transformers and save_pretrained it"
NO_MODELS = {
    "data": "",
    "teach": ", for --teacher of herd distill",
    "select": ", for --selection of herd sft",
    "evaluate": "",
    "evaluate-long": "",
    "report": "",
}
"""Stages whose folders are no models, and what they are for."""
OTHERS = {
    "adapter_config.json": "an adapter (LoRA): merge it into its model and save that",
    "*.onnx": "ONNX, a graph for inference: give the model that it was exported from",
    "*.npz": "MLX weights (.npz): give the model that it was made from",
    "*.safetensors": "safetensors without a config.json: copy that too",
    "*.bin": PICKLES,
    "*.pth": "PyTorch pickles (.pth) without Meta's params.json: copy that too",
    "*.pt": PICKLES,
    "*.msgpack": "Flax weights: open it in transformers and save_pretrained it",
    "*.h5": "TensorFlow weights: open it in transformers and save_pretrained it",
    "*.gguf": "several GGUF files: name one",
}
"""What else a folder or a file may be, by its name, and what to do about it."""


@dataclass(frozen=True)
class Source:
    """A model that can be opened."""

    path: Path
    kind: str
    base: "Source | None" = None
    """Of an adapter."""

    @cached_property
    def file(self) -> LlamaCppFile:
        return LlamaCppFile(self.path)

    def tokenizer(self, special: SpecialIds) -> Tokenizer:
        """With its chat template, where that is not Llama 4's; `special` are the ids of the model's configuration."""
        if self.base is not None and not (self.path / "tokenizer.json").exists():
            return self.base.tokenizer(special)
        return self.file.vocabulary[0] if self.kind == GGUF else Tokenizer.load(self.path, ids=special)

    def beside(self, name: str) -> Path:
        """Where a file beside the weights is, if it is there; what an adapter's folder lacks, its base may have."""
        there = self.path / name
        return self.base.beside(name) if self.base is not None and not there.exists() else there

    def weights(self, dtype: torch.dtype | None = None) -> Weights:
        """One parameter at a time; low-bit ones dequantised, and those that an adapter changes merged, in `dtype`, else
        bf16 or the base's."""
        if self.base is not None:
            base = self.base.weights(dtype)
            return peft.merge(base, peft.read_pairs(self.path, base.config), dtype)
        if self.kind == GGUF:
            return self.file.weights(dtype)
        if self.kind == LOW_BIT:
            return lowbit.open_folder(self.path, dtype)
        return (meta if self.kind == META else huggingface).open_folder(self.path)

    def transformer(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Transformer:
        """The model, holding its weights once; low-bit folders stay packed where Herd can multiply by that."""
        if self.kind == LOW_BIT:
            return lowbit.load(self.path, dtype=dtype, device=device)
        if self.kind == GGUF and (kinds := self.file.quantized):
            name = str(dtype or self.file.dtype).removeprefix("torch.")
            print(f"{self.path.name}: weights of {kinds} are opened as {name}", file=sys.stderr, flush=True)
        return assemble(self.weights(dtype), dtype=dtype, device=device)


def find_source(path: Path, *, base: Path | None = None) -> Source:
    """What `path` holds. Raises HerdError that names what it is where it cannot be opened. `base`: of an adapter, where
    it is not where the adapter says."""
    if (path / peft.CONFIG).exists() and not (path / "config.json").exists():
        return Source(path, ADAPTER, find_source(find_base(path, base)))
    if base is not None:
        raise HerdError(f"{path} is no adapter (it has no {peft.CONFIG}): leave out its base, {base}")
    if path.is_file():
        if path.suffix == ".gguf":
            return Source(path, GGUF)
        kind = next((kind for pattern, kind in OTHERS.items() if path.match(pattern)), "a file of an unknown kind")
        raise HerdError(f"{path} is {kind}; a model is a folder, or a .gguf file")
    if not path.is_dir():
        raise HerdError(f"{path} is not a folder: give the folder of a model, such as runs/tiny/sft, or a .gguf file")
    marks = [name for name in ("config.json", "params.json") if (path / name).exists()]
    if not marks and (made := other_stage(path)):
        raise HerdError(f"{path} is no model: {made}")
    if len(marks) == 2:
        raise HerdError(f"{path} has both config.json and params.json: give a folder with the files of one format")
    if marks == ["params.json"]:
        return Source(path, META)
    if not marks:
        if file := only_gguf(path):
            return Source(file, GGUF)
        raise HerdError(f"{path} has neither config.json nor params.json: {other_kind(path) or 'is it complete?'}")
    if not any(path.glob("*.safetensors")) and (held := other_kind(path)):
        raise HerdError(f"{path} cannot be opened: {held}")
    return Source(path, LOW_BIT if lowbit.is_quantized(path) else HUGGING_FACE)


def find_base(adapter: Path, given: Path | None = None) -> Path:
    """The folder of an adapter's base. Raises HerdError where there is none, or none that it was trained on."""
    noted = peft.read_config(adapter).get("base_model_name_or_path")
    lineage = read_lineage(adapter) if (adapter / "herd.json").exists() else {}
    recorded = lineage.get("adapter", {}).get("base", {}).get("hash")
    places = [given] if given is not None else [Path(str(noted)), adapter.resolve().parent / Path(str(noted)).name]
    found = [place for place in places if place.exists()]
    if not found:
        raise HerdError(
            f"{adapter} is an adapter of {given or noted}, which is not here: name its folder, with "
            f"--base of herd chat, generate, serve, evaluate and merge, or herd.load({str(adapter)!r}, base=FOLDER)"
        )
    for place in found:
        if recorded is None or hash_of(place) == recorded:
            return place
    raise HerdError(
        f"{adapter} was trained on {noted} with the hash {recorded[:12]}, {found[0]} has {hash_of(found[0])[:12]}: it "
        "has changed since, or is another model"
    )


def other_stage(folder: Path) -> str | None:
    """What of Herd's a folder is that is no model, and what to do."""
    if folder.suffix == ".partial":
        return f"it is unfinished work, run the command that began it again: it writes {folder.with_suffix('')}"
    if not (folder / "herd.json").exists():
        return None
    stage = read_lineage(folder).get("stage")
    return f"herd {stage} wrote it{NO_MODELS[stage]}" if stage in NO_MODELS else None


def other_kind(folder: Path) -> str | None:
    """What a folder that cannot be opened holds, as far as its file names show."""
    return next((f"it holds {kind}" for pattern, kind in OTHERS.items() if any(folder.glob(pattern))), None)


def only_gguf(folder: Path) -> Path | None:
    """The one GGUF model of a folder: a file, or the first of one that is split."""
    found = [path for path in sorted(folder.glob("*.gguf")) if not path.name.startswith("mmproj")]
    first = [path for path in found if (part := PART.search(path.name)) is None or int(part[1]) == 1]
    return first[0] if len(first) == 1 else None
