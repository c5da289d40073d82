"""`herd pretrain`: text and pictures fused from the first step, the whole model learning at once."""

from pathlib import Path

import torch

from herd.config import PretrainConfig
from herd.core.lineage import Stage
from herd.data.image import ImageProcessor
from herd.data.loader import PretrainBatches
from herd.data.tokenizer import Tokenizer
from herd.model.formats import huggingface
from herd.model.transformer import Transformer
from herd.train.balance import Balancer
from herd.train.loop import train
from herd.train.losses import language_loss


def pretrain(config: PretrainConfig, model: Path, data: Path, out: Path) -> Path:
    """Train the folder that `herd vision` made on documents and pictures; returns the finished folder `out`."""
    stage = Stage("pretrain", out, config=config, parents={"model": model, "data": data})
    tokenizer = Tokenizer.load(model)
    network = huggingface.load(model, dtype=torch.bfloat16).requires_grad_(True)
    # The encoder has learnt its part; the language model learns to read it, at three quarters of the cost.
    if network.vision is not None:
        network.vision.requires_grad_(False)
    batches = PretrainBatches(data, config, tokenizer, ImageProcessor(network.config.vision))
    loss_fn = language_loss(config.balance_coefficient)
    train(network, batches, loss_fn, config, stage, hooks=[Balancer(network, config.balance_rate)])
    return save_model(network, tokenizer, stage)


def save_model(model: Transformer, tokenizer: Tokenizer, stage: Stage) -> Path:
    """Write the model, tokenizer and processor of a finished stage and commit its folder."""
    huggingface.save(model, stage.work)
    huggingface.save_processor(model.config, stage.work)
    tokenizer.save(stage.work)
    stage.drop("state")
    return stage.finish(parameters=count_parameters(model))


def count_parameters(model: Transformer) -> dict[str, int]:
    """In all, of the encoder, and those that one token of text visits."""
    moe = model.config.moe
    total = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.vision.parameters()) if model.vision is not None else 0
    routed = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("EDF", "EFD")))
    idle = routed * (moe.num_experts - moe.top_k) // moe.num_experts
    return {"total": total, "vision": vision, "active": total - vision - idle}
