"""`herd midtrain`: the training length grows by stages, on real text with questions planted in it.

As much short data as the config says stays in every step, so that what pre-training taught is kept; herd.json tells
whether it was (`short_text`). After Llama 4's mid-training as far as it is public (new recipes, long-context data); the
tasks follow RULER. See docs/midtrain.md.
"""

import math
from pathlib import Path
from typing import Any

import torch

from herd.config import MidtrainConfig
from herd.core.errors import HerdError
from herd.core.lineage import Stage
from herd.data.image import ImageProcessor
from herd.data.loader import read_rows
from herd.data.long import LongBatches
from herd.data.tokenizer import Tokenizer
from herd.engine.load import load
from herd.engine.score import token_losses
from herd.model.formats import huggingface
from herd.model.parallel import Parallel, start
from herd.stages.pretrain import save_model, tell_left_out, train_language

SHORT = 512
"""Tokens of a window, in which held-out text is read before and after."""
DOCUMENTS, CHARACTERS = 8, 2000
"""Held-out documents of each language, and what is read of one."""


def midtrain(config: MidtrainConfig, model: Path, data: Path, out: Path) -> Path:
    """Train the model folder `model` on longer and longer documents; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("midtrain", out, config=config, parents={"model": model, "data": data})
    network = huggingface.load(model, dtype=torch.bfloat16).requires_grad_(True)
    tokenizer = Tokenizer.load(model, ids=network.config.special)
    if network.vision is not None:
        network.vision.requires_grad_(False)  # as in pre-training
    parallel.apply(network)
    texts = heldout_texts(data)  # said before the training, if there are none
    batches = LongBatches(data, config, tokenizer, ImageProcessor(network.config.vision))
    left_out = tell_left_out(batches.left_out, stage, parallel)
    train_language(network, batches, config, stage, parallel)

    def told(written: Path) -> dict[str, Any]:
        return {**left_out, "short_text": short_text(texts, model, written)}

    return save_model(network, tokenizer, stage, parallel, told=told)


def heldout_texts(data: Path) -> list[str]:
    """The beginnings of some of the data folder's held-out documents, of each language."""
    held: dict[str, list[str]] = {}
    for row in read_rows(data, "text", ["split", "language", "text"]):
        if row["split"] == "heldout":
            held.setdefault(row["language"], []).append(row["text"])
    texts = [text[:CHARACTERS] for of_language in held.values() for text in of_language[:DOCUMENTS]]
    if not any(texts):
        raise HerdError(f"{data} holds no text out: give a data folder whose heldout_bytes is above 0")
    return texts


def short_text(texts: list[str], before: Path, after: Path) -> dict[str, float]:
    """Bits per byte of `texts`, read in windows of SHORT tokens, by the model that mid-training began with and the one
    that it wrote: whether short-context quality stayed."""
    num_bytes, bits = sum(len(text.encode()) for text in texts), {}
    for name, folder in (("before", before), ("after", after)):
        opened = load(folder)
        losses = token_losses(opened, opened.tokenizer.encode_batch(texts), context=SHORT)
        bits[name] = round(sum(float(loss.sum()) for loss in losses) / math.log(2) / num_bytes, 4)
    return {**bits, "bytes": num_bytes}
