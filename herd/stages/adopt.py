"""`herd adopt`: a dense Llama checkpoint becomes a Llama 4 folder with the same function, see docs/adopt.md.

Its licence travels with it: LICENSE, NOTICE and the like are copied, and the model card lists what was changed.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from herd.config import MoEConfig, preset
from herd.core.files import folder_hash, sha256, write_atomic
from herd.core.lineage import Stage, remove_leftovers
from herd.core.streams import seed_of
from herd.data.tokens import formats as tokenizer_formats
from herd.data.tokens.template import limits
from herd.errors import HerdError, unknown
from herd.model.adopt import convert_dense
from herd.model.formats import huggingface
from herd.model.formats.floats import dtype_of
from herd.model.formats.gguf import read_gguf
from herd.model.formats.llama import read_folder, read_gguf_llama
from herd.model.formats.source import only_gguf, other_kind
from herd.stages.model_folder import count_parameters

DTYPES = ("float32", "bfloat16")
EYES = ("tiny",)
TERMS = ("LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*")
"""Files that must stay with the weights wherever these go."""


@dataclass(frozen=True, kw_only=True)
class AdoptConfig:
    """What is to be another than in the checkpoint."""

    experts: int = 1
    """Routed experts of each layer; one is silent at first, several share the feed-forward's work."""
    nope_every: int | None = None
    """Make every so-many-th layer global without positions, as Llama 4 is: another function, for further training."""
    vision: str | None = None
    """Add a new, untrained encoder of this preset's shape, and tokens for pictures."""
    dtype: str | None = None
    """Precision to store; None keeps every weight without loss."""
    seed: int = 0
    """Of the new weights: router, encoder."""

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise HerdError(f"experts={self.experts}: the layout has at least one routed expert")
        if self.nope_every is not None and self.nope_every < 1:
            raise HerdError(f"nope_every={self.nope_every} must be at least 1")
        if self.vision is not None and self.vision not in EYES:
            raise unknown("encoder", self.vision, EYES)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)


def adopt(config: AdoptConfig, source: Path, out: Path) -> Path:
    """Bring `source`, a Hugging Face folder or a GGUF file, home as the model folder `out`."""
    source = _weights(source)
    if source.is_dir():
        tokenizer, special = tokenizer_formats.from_folder(source)
        dense, title, licence = read_folder(source, special), source.resolve().name, None
        origin = {"folder": source.name, "hash": folder_hash(source)}
    else:
        metadata, tensors = read_gguf(source)
        tokenizer, special = tokenizer_formats.from_gguf(metadata, where=str(source))
        dense = read_gguf_llama(metadata, dict(tensors), special, where=str(source))
        title, licence = source.stem, metadata.get("general.license")
        origin = {"file": source.name, "sha256": sha256(source)}
    shape = dense.config
    if config.vision is not None:
        tokenizer, special = tokenizer_formats.with_picture_tokens(tokenizer, special)
        eyes = preset(config.vision, vocab_size=shape.vocab_size, special=special).vision
        shape = replace(shape, vision=eyes, special=special, vocab_size=max(shape.vocab_size, tokenizer.vocab_size))
    if tokenizer.vocab_size > shape.vocab_size:
        raise HerdError(f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, the model {shape.vocab_size}")
    shape = replace(shape, moe=MoEConfig(num_experts=config.experts, ffn_dim=shape.moe.ffn_dim))
    if config.nope_every is not None:
        shape = replace(shape, nope_every=config.nope_every)
    model = convert_dense(dense, shape, torch.Generator().manual_seed(seed_of(config.seed, "adopt")))

    remove_leftovers(out)
    stage = Stage("adopt", out, config=config, parents={})
    huggingface.save(model, stage.work, dtype=dtype_of(config.dtype) or dense.dtype)
    huggingface.save_processor(shape, stage.work, parent=source)
    tokenizer.save(stage.work)
    terms = _copy_terms(source if source.is_dir() else source.parent, stage.work)
    if cannot := limits(tokenizer):
        print(f"its chat template cannot do: {'; '.join(cannot)}")
    write_atomic(stage.work / "README.md", card(title, licence, origin, terms, config, cannot))
    return stage.finish(parameters=count_parameters(model), origin={"name": title, **origin})


def _weights(source: Path) -> Path:
    """The folder or the GGUF file itself; a folder that holds one GGUF and no config.json means that."""
    if not source.exists():
        raise HerdError(f"{source} does not exist: give a Hugging Face folder or a GGUF file")
    if source.is_dir() and not (source / "config.json").exists():
        if file := only_gguf(source):
            return file
        raise HerdError(f"{source} has no config.json: {other_kind(source) or 'give the folder or file of a model'}")
    return source


def _copy_terms(source: Path, out: Path) -> list[str]:
    """Copy the files that the licence asks to keep, and the source's own card; returns the names of the former."""
    terms = sorted({path.name for pattern in TERMS for path in source.glob(pattern) if path.is_file()})
    for name in terms:
        shutil.copyfile(source / name, out / name)
    if (source / "README.md").exists():
        shutil.copyfile(source / "README.md", out / "README.source.md")
    return terms


def card(
    title: str,
    licence: str | None,
    origin: dict[str, Any],
    terms: list[str],
    config: AdoptConfig,
    cannot: list[str],
) -> str:
    """The model card: where the weights come from, under which terms, what was changed, and what the chat template
    cannot do."""
    front = ["---", *([f"license: {licence}"] if licence else []), "library_name: transformers", "---"]
    changes = [
        "rows of q and k in the order of interleaved rotation, unembedding apart from the embedding",
        "the feed-forward is the shared expert of a mixture; "
        + (
            "one routed expert, silent until trained"
            if config.experts == 1
            else f"{config.experts} routed experts made of it do half of its work, nearly the same function"
        ),
    ]
    if config.nope_every is not None:
        changes.append(f"every {config.nope_every}th layer has lost its positions: **another function**, to be trained")
    if config.vision is not None:
        changes.append(f"a new, untrained vision encoder ({config.vision}) and six tokens for pictures")
    if config.dtype is not None:
        changes.append(f"weights rounded to {config.dtype}")
    where = ", ".join(f"{key} `{value}`" for key, value in origin.items())
    terms_line = f"The source states the licence `{licence}`." if licence else "The source's licence holds."
    texts = f"Its text: {', '.join(f'[{name}]({name})' for name in terms)}." if terms else "No text of it came along."
    return "\n".join(
        [
            *front,
            "",
            f"# {title}, in the Llama 4 layout",
            "",
            f"Made by `herd adopt` from {where}; the weights were **changed in form**:",
            "",
            *[f"* {change}" for change in changes],
            "",
            f"{terms_line} {texts}",
            "",
            *(["Its chat template cannot do:", "", *[f"* {one}" for one in cannot], ""] if cannot else []),
        ]
    )
