"""`herd pretrain`: from random weights to a base model, text and pictures fused from the first step."""

from pathlib import Path

import torch

from herd.config import ModelConfig, PretrainConfig, preset
from herd.core.lineage import Stage
from herd.core.streams import seed_of
from herd.data.image import ImageProcessor
from herd.data.loader import PretrainBatches
from herd.data.tokenizer import Tokenizer
from herd.model.formats import huggingface
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.loop import train


def pretrain(config: PretrainConfig, data: Path, out: Path) -> Path:
    """Train on the data folder's documents and pictures; returns the finished model folder `out`."""
    stage = Stage("pretrain", out, config=config, parents={"data": data})
    tokenizer = Tokenizer.load(data / "tokenizer")
    shape = preset(config.preset, vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
    model = Transformer(shape).to(torch.bfloat16)
    initialise(model, torch.Generator().manual_seed(seed_of(config.seed, "weights")))
    train(model, PretrainBatches(data, config, tokenizer, ImageProcessor(shape.vision)), config, stage)
    return save_model(model, tokenizer, stage)


def save_model(model: Transformer, tokenizer: Tokenizer, stage: Stage) -> Path:
    """Write the model, tokenizer and processor of a finished stage and commit its folder."""
    huggingface.save(model, stage.work)
    huggingface.save_processor(model.config, stage.work)
    tokenizer.save(stage.work)
    stage.drop("state")
    return stage.finish(parameters=parameters(model.config, model))


def parameters(config: ModelConfig, model: Transformer) -> dict[str, int]:
    """Counts for herd.json: in all, and those that one token of text visits."""
    total = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.vision.parameters())
    idle = config.moe.num_experts - config.moe.top_k
    routed = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("EDF", "EFD")))
    active = total - vision - routed * idle // config.moe.num_experts
    return {"total": total, "vision": vision, "active": active}
