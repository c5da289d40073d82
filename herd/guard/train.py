"""`herd guard train`: a dense guard of any model folder, as Llama Guard 4 is made from Scout.

The routers and routed experts are dropped, the shared experts stay; then the model is fine-tuned to answer safe or
unsafe on generated items and on the user's examples. At the end it is measured on held-out generated items; how it does
on real ones only a test on these can tell (`herd bench guard`).
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from herd.config import GuardConfig, ModelConfig
from herd.core.device import choose_device, naming_out_of_memory
from herd.core.files import write_atomic
from herd.core.lineage import Stage
from herd.data.media.image import ImageProcessor
from herd.data.tasks.safety.pictured import Drawings
from herd.data.tokens.chat import render_messages
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.guard.batches import GuardBatches, guard_loss
from herd.guard.card import guard_card
from herd.guard.examples import read_examples
from herd.guard.measure import heldout_rates, invented_rates, pictured_rates
from herd.guard.model_guard import ROOM, Guard
from herd.guard.prompt import guard_messages, text_part
from herd.guard.taxonomy import HAZARDS, read_policy
from herd.model.formats.source import find_source
from herd.model.formats.weights import Weights, skeleton
from herd.model.parallel import Parallel, start
from herd.model.prune import dense, pruned
from herd.model.transformer import Transformer
from herd.stages.language import train_language, trainable_weights
from herd.stages.model_folder import save_model
from herd.train.dtype import training_dtype
from herd.train.trainable import set_trainable

LEAST = 3 * ROOM
"""Tokens beside the policy: for the answer, and for windows of a message."""
LANGUAGES = ("en",)
"""Of the generated items."""


def train_guard(config: GuardConfig, model: Path, out: Path) -> Path:
    """Make a guard of the model folder `model`; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("guard", out, config=config, parents={"model": model, **config.inputs()})
    inputs = config.inputs()
    policy = read_policy(inputs["policy"]) if config.policy else HAZARDS
    examples = read_examples(inputs["examples"], policy) if config.examples else []
    drawings = Drawings(inputs["pictures"]) if config.pictures else None
    source, device = find_source(model), choose_device()
    weights = dense(trainable_weights(source))
    if config.num_layers:
        weights = pruned(weights, first_layers(config.num_layers, weights.config), {})
    if drawings and weights.config.vision is None:
        raise HerdError(f"{model} reads text alone: leave pictures out")
    dtype = training_dtype(config.dtype, stage)
    network = skeleton(weights.config)
    others = [same_shape(place, weights.config) for role, place in inputs.items() if role.startswith("mean_with")]
    tokenizer = source.tokenizer(network.config.special)
    check_context(config, tokenizer)
    set_trainable(network, config.trainable)
    parallel.apply(network)
    with naming_out_of_memory("take more ranks (--parallel.shard, --parallel.tensor)"):
        parallel.read(network, weights, dtype=dtype, device=device)
    processor = ImageProcessor(network.config.vision)
    batches = GuardBatches(config, tokenizer, processor, examples=examples, policy=policy, drawings=drawings)
    train_language(network, batches, config, stage, parallel, loss_fn=guard_loss(parallel))
    take_mean(network, others, partial(parallel.read, dtype=dtype, device=device))

    def facts(folder: Path) -> dict[str, Any]:
        kept: dict[str, Any] = {"form": config.form, "threshold": config.threshold, "context": config.context}
        with Guard(folder, **kept) as guard:
            measured = heldout_rates(guard, config.seed, config.heldout_items)
            measured["invented"] = invented_rates(guard, config.seed, -(-config.heldout_items // 4))
            if drawings:
                measured["pictures"] = pictured_rates(guard, drawings, config.seed, config.heldout_items)
        found = {**kept, "languages": LANGUAGES, "heldout": measured}
        write_atomic(folder / "README.md", f"# Guard of messages\n\n## Safety\n\n{guard_card(found)}")
        return {"guard": found}

    return save_model(network, tokenizer, stage, parallel, facts=facts)


def same_shape(guard: Path, wanted: ModelConfig) -> Weights:
    """The weights of a guard. Raises HerdError where they have another shape."""
    weights = find_source(guard).weights()
    if differing := [one.name for one in fields(wanted) if vars(weights.config)[one.name] != vars(wanted)[one.name]]:
        raise HerdError(f"mean_with={guard}: a mean is of weights of one shape; not the same: {', '.join(differing)}")
    return weights


@torch.no_grad()
def take_mean(network: Transformer, others: Sequence[Weights], read: Callable[[Transformer, Weights], None]) -> None:
    """Give the network the mean of its weights and the others', which `read` fills it with."""
    if not others:
        return
    sums = {name: weight.detach().float().clone() for name, weight in network.named_parameters()}
    for one in others:
        read(network, one)
        for name, weight in network.named_parameters():
            sums[name] += weight
    for name, weight in network.named_parameters():
        weight.copy_(sums[name] / (1 + len(others)))


def first_layers(count: int, model: ModelConfig) -> list[int]:
    """Raises HerdError where the model has fewer."""
    if count > model.num_layers:
        raise HerdError(f"num_layers={count}: the model has {model.num_layers}")
    return list(range(count))


def check_context(config: GuardConfig, tokenizer: Tokenizer) -> None:
    """Raises HerdError where S1 to S14 leave no room for a message: before the training, not when it is measured."""
    messages = guard_messages([text_part("")], "assistant", HAZARDS, form=config.form)
    used = len(render_messages(tokenizer, ImageProcessor(None), messages, add_generation_prompt=True).ids)
    if config.context < used + LEAST:
        raise HerdError(
            f"context={config.context}: the policy takes {used} tokens of this tokenizer; give at least {used + LEAST}"
        )
