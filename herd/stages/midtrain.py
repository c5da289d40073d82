"""`herd midtrain`: the training length grows by stages, on real text with questions planted in it.

As much short data as the config says stays in every step, so that what pre-training taught is kept. After Llama 4's
mid-training as far as it is public (new recipes, long-context data); the tasks follow RULER. See docs/midtrain.md.
"""

from pathlib import Path

import torch

from herd.config import MidtrainConfig
from herd.core.lineage import Stage
from herd.data.image import ImageProcessor
from herd.data.long import LongBatches
from herd.data.tokenizer import Tokenizer
from herd.model.formats import huggingface
from herd.model.parallel import Parallel, start
from herd.stages.pretrain import save_model, train_language


def midtrain(config: MidtrainConfig, model: Path, data: Path, out: Path) -> Path:
    """Train the model folder `model` on longer and longer documents; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("midtrain", out, config=config, parents={"model": model, "data": data})
    tokenizer = Tokenizer.load(model)
    network = huggingface.load(model, dtype=torch.bfloat16).requires_grad_(True)
    if network.vision is not None:
        network.vision.requires_grad_(False)  # as in pre-training
    parallel.apply(network)
    batches = LongBatches(data, config, tokenizer, ImageProcessor(network.config.vision))
    train_language(network, batches, config, stage, parallel)
    return save_model(network, tokenizer, stage, parallel)
