"""`herd guard train`: a dense guard of any model folder, as Llama Guard 4 is made from Scout.

The routers and routed experts are dropped, the shared experts stay; then the model is fine-tuned to answer safe or
unsafe on generated items and on the user's examples. At the end it is measured on held-out generated items; how it does
on real ones only a test on these can tell (`herd bench guard`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
from herd.model.formats.weights import skeleton
from herd.model.parallel import Parallel, start
from herd.model.prune import dense, pruned
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
    tokenizer = source.tokenizer(network.config.special)
    check_context(config, tokenizer)
    set_trainable(network, config.trainable)
    parallel.apply(network)
    with naming_out_of_memory("take more ranks (--parallel.shard, --parallel.tensor)"):
        parallel.read(network, weights, dtype=dtype, device=device)
    trained = (named for named in network.named_parameters() if named[1].requires_grad and config.start_share)
    begun = {name: weight.detach().clone() for name, weight in trained}
    processor = ImageProcessor(network.config.vision)
    batches = GuardBatches(config, tokenizer, processor, examples=examples, policy=policy, drawings=drawings)
    train_language(network, batches, config, stage, parallel, loss_fn=guard_loss(parallel))
    move_back(network, begun, config.start_share)

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


@torch.no_grad()
def move_back(network: nn.Module, begun: Mapping[str, Tensor], share: float) -> None:
    """Move the weights toward those that they began as: by a share of 0.5 to the mean of both."""
    for name, weight in network.named_parameters():
        if name in begun:
            weight.lerp_(begun[name], share)


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
