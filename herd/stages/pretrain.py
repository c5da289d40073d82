"""`herd pretrain`: text and pictures fused from the first step, the whole model learning at once."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from herd.config import MidtrainConfig, PretrainConfig, SftConfig
from herd.core.batch import Batch
from herd.core.errors import HerdError
from herd.core.lineage import Stage
from herd.data.image import ImageProcessor
from herd.data.loader import Batches, PretrainBatches
from herd.data.tokenizer import Tokenizer
from herd.model.formats import huggingface
from herd.model.formats.weights import skeleton
from herd.model.parallel import ALONE, Parallel, start
from herd.model.parallel.pieces import split
from herd.model.transformer import Transformer
from herd.train.balance import Balancer
from herd.train.loop import train
from herd.train.losses import language_loss


def pretrain(config: PretrainConfig, model: Path, data: Path, out: Path) -> Path:
    """Train the folder that `herd vision` made on documents and pictures; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("pretrain", out, config=config, parents={"model": model, "data": data})
    network = huggingface.load(model, dtype=torch.bfloat16).requires_grad_(True)
    tokenizer = Tokenizer.load(model, ids=network.config.special)
    # The encoder has learnt its part; the language model learns to read it, at three quarters of the cost.
    if network.vision is not None:
        network.vision.requires_grad_(False)
    parallel.apply(network)
    batches = PretrainBatches(data, config, tokenizer, ImageProcessor(network.config.vision))
    left_out = tell_left_out(batches.left_out, stage, parallel)
    train_language(network, batches, config, stage, parallel)
    return save_model(network, tokenizer, stage, parallel, told=lambda _: left_out)


def tell_left_out(counts: Mapping[str, int], stage: Stage, parallel: Parallel = ALONE) -> dict[str, Any]:
    """Say what of the data is not trained on; gives what herd.json records of it."""
    if parallel.first:
        for what, count in counts.items():
            print(f"{stage.name}: left out {count:,} {what}", flush=True)
    return {"left_out": dict(counts)}


def train_language(
    model: Transformer,
    batches: Batches[Batch],
    config: PretrainConfig | SftConfig | MidtrainConfig,
    stage: Stage,
    parallel: Parallel,
) -> None:
    """Train a model, applied to the ranks already, to tell the next token."""
    shared = parallel.share(batches, model.config.chunk_size)
    loss_fn = language_loss(config.balance_coefficient, parallel)
    balancer = Balancer(model, config.balance_rate, shared, loss_fn, reduce=parallel.sum_counts)
    model.recompute, parts = config.recompute, config.micro_batches
    if parts > 1 and config.balance_coefficient:
        raise HerdError(f"balance_coefficient looks at a whole batch, micro_batches={parts}: set balance_rate instead")
    if parts > 1 and parallel.mesh.sizes["context"] > 1:
        raise HerdError(f"context ranks cut every batch themselves: set micro_batches={parts} to 1")
    cut = partial(split, count=parts)
    train(model, shared, loss_fn, config, stage, hooks=[balancer], parallel=parallel, split=cut)


def save_model(
    model: Transformer,
    tokenizer: Tokenizer,
    stage: Stage,
    parallel: Parallel = ALONE,
    *,
    told: Callable[[Path], dict[str, Any]] = lambda _: {},
) -> Path:
    """Write the model, tokenizer and processor of a finished stage and commit its folder. The first rank does, and
    every rank gives its parts, one parameter after the other. herd.json also has what `told` says of the folder."""
    weights = parallel.weights(model)
    if not parallel.first:
        for name in huggingface.rules(model.config):
            weights.read(name)
        return stage.out
    huggingface.write(weights, stage.work, dtype=torch.bfloat16)
    huggingface.save_processor(model.config, stage.work, parent=stage.parents.get("model"))
    tokenizer.save(stage.work)
    return stage.finish(parameters=count_parameters(skeleton(model.config)), **told(stage.work))


def count_parameters(model: Transformer) -> dict[str, int]:
    """In all, of the encoder, and those that one token of text visits."""
    moe = model.config.moe
    total = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.vision.parameters()) if model.vision is not None else 0
    routed = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("EDF", "EFD")))
    idle = routed * (moe.num_experts - moe.top_k) // moe.num_experts
    return {"total": total, "vision": vision, "active": total - vision - idle}
