"""`herd bench ablation`: what each part of iRoPE does for finding a needle far beyond the training length.

Small models of the shape `tiny-long` are trained from scratch on needles in short documents by the loop of
mid-training, all on the same tokens, each with one part changed: positions in the global layer too, the queries'
temperature, QK norm, the chunk. Then all read the same text, and are asked for needles within the training length and
up to 500 times as far. A run is a folder under `out`: one that was stopped resumes from its checkpoint, one that is
done is read.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from herd.bench.table import Row, show
from herd.config import CheckpointConfig, MidtrainConfig, ModelConfig, preset
from herd.core.files import read_json, write_atomic, write_json
from herd.core.lineage import Stage
from herd.data.media.image import ImageProcessor
from herd.data.packages import planted
from herd.data.packages.haystack import haystack
from herd.data.packages.long_batches import LongBatches, evaluation_keys
from herd.data.packages.planted import Planter
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.load import Model
from herd.engine.reader import Reader
from herd.errors import unknown
from herd.evaluate.charts import recall_map
from herd.evaluate.long import short_length
from herd.evaluate.long_questions import ask_all, share_right
from herd.evaluate.needle import Haystack
from herd.model.init import first_weights
from herd.model.parallel import ALONE
from herd.model.transformer import Layer, Transformer
from herd.stages.language import train_language

TRAINED = (256, 256, 256, 1024, 2048)
"""Tokens of the documents, by fifths of the training: finding is learnt in short ones, or not at all."""
ASKED = (2048, 16_384, 131_072, 1_048_576)
QK_INIT_CORRELATION = 0.7
"""See `herd.model.init`: without it finding is not learnt in so few tokens."""
SEEDS_OF_A_DEPTH = 2


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What differs from `tiny-long`."""

    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the shape."""
    rotates: bool = False
    """Whether RoPE rotates the global layer's queries and keys too."""


VARIANTS = {
    "as it is": Variant(),
    "RoPE in all layers": Variant(rotates=True),
    "temperature off": Variant(changes={"temperature_tuning": False}),
    "slope 0.1": Variant(changes={"temperature_scale": 0.1}),
    "slope 0.5": Variant(changes={"temperature_scale": 0.5}),
    "QK norm off": Variant(changes={"qk_norm": False}),
    "chunk 64": Variant(changes={"chunk_size": 64}),
    "chunk 256": Variant(changes={"chunk_size": 256}),
    "chunk 4096": Variant(changes={"chunk_size": 4096}),
}


def model_of(variant: Variant, shape: ModelConfig, seed: int) -> Transformer:
    """First weights, the same for all variants of a seed."""
    model = first_weights(replace(shape, **variant.changes), seed, qk_init_correlation=QK_INIT_CORRELATION)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        layer.attention.rotates |= variant.rotates
    return model


def recall(model: Transformer, tokenizer: Tokenizer, data: Path, lengths: Sequence[int]) -> dict[str, float]:
    """Share of single needles that are found, by the tokens read."""
    chunk = model.config.chunk_size
    opened = Model(
        config=model.config,
        transformer=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        processor=ImageProcessor(None),
    )
    reader, ids = Reader(opened, context=lengths[-1] + chunk), haystack(data, tokenizer, lengths[-1])
    reader.read(torch.from_numpy(ids))
    hay, keys = Haystack(reader, Planter(tokenizer), ids), evaluation_keys(data)
    return {
        str(length): share_right(ask_all(hay, "single", planted.needle, keys, length, SEEDS_OF_A_DEPTH))
        for length in lengths
        if length >= chunk
    }


def train_variant(
    name: str, seed: int, data: Path, out: Path, *, num_tokens: int, lengths: Sequence[int]
) -> dict[str, float]:
    """Train and ask, or read what was found."""
    folder = out / f"{name.replace(' ', '-')}-{seed}"
    if not folder.exists():
        tokenizer = Tokenizer.load(data / "tokenizer")
        shape = preset("tiny-long", vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
        config = MidtrainConfig(
            seed=seed, num_tokens=num_tokens, batch_tokens=6144, lengths=TRAINED, short_share=0.2, context=256,
            plain_share=0.05, quote_share=0.05, needle_share=1.0, most_questions=256,
            checkpoint=CheckpointConfig(every_s=60),
        )  # fmt: skip
        stage = Stage("ablation", folder, config=config, parents={"data": data})
        model = model_of(VARIANTS[name], shape, seed)
        batches = LongBatches(data, config, tokenizer, ImageProcessor(None))
        train_language(model, batches, config, stage, ALONE)
        write_json(stage.work / "recall.json", recall(model, tokenizer, data, lengths))
        stage.finish()
    found: dict[str, float] = read_json(folder / "recall.json")
    return found


def ablation(
    data: Path, out: Path, *, variants: Sequence[str], seeds: int, num_tokens: int, longest: int, as_json: bool
) -> None:
    """Run, print and draw: of each variant the mean over the seeds, beside the shape as it is."""
    names = list(variants) or list(VARIANTS)
    for name in names:
        if name not in VARIANTS:
            raise unknown("variant", name, list(VARIANTS))
    lengths = [length for length in ASKED if length <= longest]
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):  # all variants once before any again
        for name in dict.fromkeys([next(iter(VARIANTS)), *names]):
            one = train_variant(name, seed, data, out, num_tokens=num_tokens, lengths=lengths)
            found.setdefault(name, []).append(one)
    mean = {
        name: {length: statistics.fmean(one[length] for one in runs) for length in runs[0]}
        for name, runs in found.items()
    }
    base = mean[next(iter(VARIANTS))]
    shown = {name: [shares.get(str(length), 0.0) for length in lengths] for name, shares in mean.items()}
    write_atomic(out / "recall.svg", recall_map(shown, [short_length(length) for length in lengths]))
    show(
        [
            Row(
                case=f"{name}: found of {int(length):,}", unit="share", ours=share, peer=base.get(length, 0.0),
                peer_name=next(iter(VARIANTS)), more_is_better=True,
            )
            for name, shares in mean.items()
            for length, share in shares.items()
        ],
        as_json=as_json,
    )  # fmt: skip
