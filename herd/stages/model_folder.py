"""Writing the model folder of a finished stage, or its adapter folder, and what every stage records of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.config import LoraConfig
from herd.core.lineage import Stage, hash_of
from herd.data.tokens.tokenizer import Tokenizer
from herd.model.formats import huggingface, peft
from herd.model.formats.source import find_source
from herd.model.formats.weights import skeleton
from herd.model.lora import adapters
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
    that the stage computed in and has the `facts` of the written folder. Of a model with adapters these alone are
    written, in fp32."""
    weights = parallel.weights(model)
    trained = {name: weights.read(name) for name, _ in adapters(model)}
    if trained:
        return save_adapter(model, trained, tokenizer, stage, facts) if parallel.first else stage.out
    if not parallel.first:
        for name in huggingface.rules(model.config):
            weights.read(name)
        return stage.out
    huggingface.write(weights, stage.work, dtype=torch.bfloat16)
    huggingface.save_processor(model.config, stage.work, parent=stage.parents.get("model"))
    tokenizer.save(stage.work)
    return stage.finish(**trained_model(model), **facts(stage.work))


def save_adapter(
    model: Transformer,
    trained: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    stage: Stage,
    facts: Callable[[Path], dict[str, Any]],
) -> Path:
    """Write the adapters' parameters `trained` in PEFT's format, with tokenizer and processor; commit the folder."""
    begun = find_source(stage.parents["model"])
    base = (begun.base or begun).path
    lora = LoraConfig(**{**stage.config["lora"], "targets": tuple(stage.config["lora"]["targets"])})
    pairs, vision = peft.from_parameters(model.config, trained, lora.scale), model.config.vision is not None
    peft.write(stage.work, pairs, lora, base=base.resolve(), vision=vision)
    huggingface.save_processor(model.config, stage.work, parent=base)
    tokenizer.save(stage.work)
    count = sum(tensor.numel() for tensor in trained.values())
    adapter = {"base": {"path": str(base), "hash": hash_of(base)}, "rank": lora.rank, "parameters": count}
    return stage.finish(**trained_model(model), adapter=adapter, **facts(stage.work))


def trained_model(model: Transformer) -> dict[str, Any]:
    """What herd.json records of a model that was trained."""
    computed_in = str(model.embedding.weight.dtype).removeprefix("torch.")
    return {"parameters": count_parameters(skeleton(model.config)), "computed_in": computed_in}


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
