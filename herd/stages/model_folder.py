"""Writing the model folder of a finished stage, and what every stage records of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from herd.core.lineage import Stage
from herd.data.tokens.tokenizer import Tokenizer
from herd.model.formats import huggingface
from herd.model.formats.weights import skeleton
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer


def save_model(
    model: Transformer,
    tokenizer: Tokenizer,
    stage: Stage,
    parallel: Parallel = ALONE,
    *,
    facts: Callable[[Path], dict[str, Any]] = lambda _: {},
) -> Path:
    """Write the model, tokenizer and processor of a finished stage and commit its folder. The first rank does, and
    every rank gives its parts, one parameter after the other. The folder is in bf16, herd.json names the format
    that the stage computed in and has the `facts` of the written folder."""
    weights = parallel.weights(model)
    if not parallel.first:
        for name in huggingface.rules(model.config):
            weights.read(name)
        return stage.out
    huggingface.write(weights, stage.work, dtype=torch.bfloat16)
    huggingface.save_processor(model.config, stage.work, parent=stage.parents.get("model"))
    tokenizer.save(stage.work)
    computed_in = str(model.embedding.weight.dtype).removeprefix("torch.")
    counts = count_parameters(skeleton(model.config))
    return stage.finish(parameters=counts, computed_in=computed_in, **facts(stage.work))


def count_parameters(model: Transformer) -> dict[str, int]:
    """In all, of the encoder, and those that one token of text visits."""
    moe = model.config.moe
    total = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.vision.parameters()) if model.vision is not None else 0
    routed = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("EDF", "EFD")))
    idle = routed * (moe.num_experts - moe.top_k) // moe.num_experts
    return {"total": total, "vision": vision, "active": total - vision - idle}


def report_left_out(counts: Mapping[str, int], stage: Stage, parallel: Parallel = ALONE) -> dict[str, Any]:
    """Print what of the data is not trained on; gives what herd.json records of it."""
    if parallel.first:
        for what, count in counts.items():
            print(f"{stage.name}: left out {count:,} {what}", flush=True)
    return {"left_out": dict(counts)}
