"""`herd convert`: a model in another format. The direction follows from SRC and DST.

    any model, adapters included          → DST.gguf    the text model for llama.cpp
    Hugging Face folder                   → DST         Meta's folder, `shards` files
    Meta's folder, GGUF, low-bit folder   → DST         a Hugging Face folder

Weights are not computed with, only laid out; low-bit ones are dequantised, and `dtype`
rounds. Files beside the weights are copied: tokenizer, chat template, processor. The result
is whole or absent, and records its source.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from herd.config.ranges import Checked, Count
from herd.core.files import work_folder
from herd.core.lineage import Stage, commit_id, hash_of, remove_leftovers
from herd.core.progress import progress_bar
from herd.errors import HerdError
from herd.model.formats import huggingface, llama_cpp, meta
from herd.model.formats.floats import FLOATS, dtype_of
from herd.model.formats.source import ADAPTER, GGUF, HUGGING_FACE, LOW_BIT, Source, find_source
from herd.model.formats.weights import Weights, skeleton

BESIDE = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
"""What goes along as it is."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Checked):
    """How to convert."""

    shards: Count = 8
    """Files of Meta's folder: the ranks of tensor parallelism that it is for."""
    dtype: str = ""
    """bfloat16, float16 or float32; as stored if empty."""
    text_only: bool = False
    """Leave the vision encoder out (GGUF)."""


def convert(config: ConvertConfig, path: Path, out: Path) -> Path:
    """Write the model `path` in its other format to `out`; returns it."""
    if config.dtype and config.dtype not in FLOATS:
        raise HerdError(f"dtype={config.dtype!r} is none of {', '.join(FLOATS)}")
    if out.exists():
        raise HerdError(f"{out} is there already: give another path, or remove it first")
    source = find_source(path)
    if source.kind == ADAPTER and out.suffix != ".gguf":
        raise HerdError(f"{path} is an adapter: herd merge {path} --out {out} writes it as a model folder")
    if out.suffix == ".gguf":
        if source.kind == GGUF:
            raise HerdError(f"{path} is GGUF already: llama.cpp's own llama-quantize writes it in another type")
        return to_gguf(config, source, out)
    return to_meta(config, source, out) if source.kind == HUGGING_FACE else to_huggingface(config, source, out)


def to_huggingface(config: ConvertConfig, source: Source, out: Path) -> Path:
    weights = source.weights(dtype_of(config.dtype))
    stage = start(config, source, out, f"{source.kind} to huggingface")
    huggingface.save_processor(weights.config, stage.work)
    carry(source, stage.work)  # whose files count before those
    with shown(weights) as reading:
        huggingface.write(reading, stage.work, dtype=dtype_of(config.dtype) or weights.dtype)
    if not (stage.work / "tokenizer.json").exists():
        source.tokenizer(weights.config.special).save(stage.work)
    return stage.finish()


def to_meta(config: ConvertConfig, source: Source, out: Path) -> Path:
    weights = source.weights()
    meta.check_export(weights.config, config.shards)
    stage = start(config, source, out, "huggingface to meta")
    carry(source, stage.work)
    with shown(weights, passes=config.shards) as reading:
        meta.write(reading, stage.work, ranks=config.shards, dtype=dtype_of(config.dtype) or weights.dtype)
    return stage.finish()


def to_gguf(config: ConvertConfig, source: Source, out: Path) -> Path:
    weights = source.weights(dtype_of(config.dtype) if source.kind == LOW_BIT else None)
    llama_cpp.form_of(weights)
    if weights.config.vision and not config.text_only:
        raise HerdError(
            "the vision encoder is not written to GGUF, as llama.cpp reads a tile's tokens column by column "
            "(docs/convert.md): give --text-only to write the text model alone"
        )
    facts = {"stage": "convert", "commit": commit_id(), "parents": {"model": parent_of(source.path)}}
    out.parent.mkdir(parents=True, exist_ok=True)
    work, dtype = work_folder(out), dtype_of(config.dtype) or weights.dtype
    tokenizer = source.tokenizer(weights.config.special)
    with shown(weights) as reading:
        form = llama_cpp.write_text(
            reading,
            tokenizer.document,
            work,
            dtype=dtype,
            facts=facts,
            template=tokenizer.chat_template,
        )
    os.replace(work, out)
    if form.context < weights.config.max_positions:
        print(f"{out.name} is limited to {form.context:,} tokens: {form.reason}")
    return out


def start(config: ConvertConfig, source: Source, out: Path, direction: str) -> Stage:
    """The stage, started over: leftovers of an earlier attempt are removed."""
    remove_leftovers(out)
    settings = {"direction": direction, "dtype": config.dtype or None, "shards": config.shards}
    return Stage("convert", out, config=settings, parents={"model": source.path})


def parent_of(source: Path) -> dict[str, Any]:
    return {"path": str(source), "hash": hash_of(source)}


def carry(source: Source, work: Path) -> None:
    """Copy the files beside the weights of a folder."""
    for name in BESIDE if source.path.is_dir() else ():
        if (there := source.beside(name)).exists():
            shutil.copyfile(there, work / name)


@contextmanager
def shown(weights: Weights, passes: int = 1) -> Iterator[Weights]:
    """Weights whose reading is shown as progress, in MB."""
    sizes = {name: p.numel() * weights.dtype.itemsize / 1e6 for name, p in skeleton(weights.config).named_parameters()}
    with progress_bar("converting (MB)", sum(sizes.values()) * passes) as bar:

        def read(name: str) -> Tensor:
            tensor = weights.read(name)
            bar.advance(sizes[name])
            return tensor

        yield Weights(config=weights.config, dtype=weights.dtype, read=read)
