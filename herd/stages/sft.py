"""`herd sft`: a base model learns to answer, on chats in Llama 4's format or by the folder's own chat template."""

from pathlib import Path

import torch

from herd.config import SftConfig
from herd.core.lineage import Stage
from herd.data.image import ImageProcessor
from herd.data.loader import SftBatches
from herd.data.tokenizer import Tokenizer
from herd.model.formats import huggingface
from herd.model.parallel import Parallel, start
from herd.stages.pretrain import save_model, tell_left_out, train_language


def sft(config: SftConfig, model: Path, data: Path, out: Path) -> Path:
    """Fine-tune the model folder `model` on the data folder's chats; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("sft", out, config=config, parents={"model": model, "data": data})
    network = huggingface.load(model, dtype=torch.bfloat16).requires_grad_(True)
    tokenizer = Tokenizer.load(model, ids=network.config.special)
    if network.vision is not None:
        network.vision.requires_grad_(False)  # as in pre-training
    parallel.apply(network)
    batches = SftBatches(data, config, tokenizer, ImageProcessor(network.config.vision))
    left_out = tell_left_out(batches.left_out, stage, parallel)
    train_language(network, batches, config, stage, parallel)
    return save_model(network, tokenizer, stage, parallel, told=lambda _: left_out)
