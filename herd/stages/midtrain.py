"""`herd midtrain`: the training length grows by stages, on real text with questions planted in it.

As much short data as the config asks for stays in every step, so that what pre-training taught is kept; herd.json
records whether it was (`short_text`). After Llama 4's mid-training as far as it is public (new recipes, long-context
data); the tasks follow RULER. See docs/midtrain.md.
"""

import math
from pathlib import Path
from typing import Any

from herd.config import MidtrainConfig
from herd.core.lineage import Stage
from herd.data.media.image import ImageProcessor
from herd.data.packages.long_batches import LongBatches
from herd.engine.load import load
from herd.engine.score import token_losses
from herd.model.parallel import Parallel, start
from herd.stages.language import heldout_loss, open_model, train_language
from herd.stages.model_folder import report_left_out, save_model
from herd.train.heldout import heldout_texts

SHORT = 512
"""Tokens of a window, in which held-out text is read before and after."""
DOCUMENTS, CHARACTERS = 8, 2000
"""Held-out documents of each language, and what is read of one."""


def midtrain(config: MidtrainConfig, model: Path, data: Path, out: Path) -> Path:
    """Train the model folder `model` on longer and longer documents; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("midtrain", out, config=config, parents={"model": model, "data": data})
    network, tokenizer = open_model(model, config, stage, parallel)
    texts = heldout_texts(data, DOCUMENTS, CHARACTERS)  # if there are none, raises before the training
    batches = LongBatches(data, config, tokenizer, ImageProcessor(network.config.vision))
    left_out = report_left_out(batches.left_out, stage, parallel)
    hooks = heldout_loss(network, tokenizer, data, config, parallel)
    train_language(network, batches, config, stage, parallel, hooks=hooks)

    def facts(written: Path) -> dict[str, Any]:
        return {**left_out, "short_text": short_text(texts, model, written)}

    return save_model(network, tokenizer, stage, parallel, facts=facts)


def short_text(texts: list[str], before: Path, after: Path) -> dict[str, float]:
    """Bits per byte of `texts`, read in windows of SHORT tokens, by the model that mid-training began with and the one
    that it wrote: whether short-context quality stayed."""
    num_bytes, bits = sum(len(text.encode()) for text in texts), {}
    for name, folder in (("before", before), ("after", after)):
        opened = load(folder)
        losses = token_losses(opened, opened.tokenizer.encode_batch(texts), context=SHORT)
        bits[name] = round(sum(float(loss.sum()) for loss in losses) / math.log(2) / num_bytes, 4)
    return {**bits, "bytes": num_bytes}
