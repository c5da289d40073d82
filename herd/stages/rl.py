"""`herd rl`: a model learns from what its own answers are worth, by one more kind of batches in the loop of all."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from herd.config import ModelConfig, RlConfig
from herd.core.batch import Batch
from herd.core.lineage import Stage
from herd.data.media.image import ImageProcessor
from herd.data.tokens.shards import tokenizer_hash
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.load import load
from herd.engine.model import LoadedModel
from herd.errors import HerdError
from herd.model.formats.weights import skeleton
from herd.model.parallel import Parallel, start
from herd.model.quantize import Scheme, quantizable, quantize_tensors
from herd.model.transformer import Transformer
from herd.rl.batches import RolloutBatches
from herd.rl.curriculum import Curriculum
from herd.rl.journal import Journal
from herd.rl.loss import policy_loss
from herd.rl.process import Processes
from herd.rl.prompts import Prompts
from herd.rl.ranks import DealtBatches
from herd.rl.readers import with_readers
from herd.rl.remote import Actors
from herd.rl.rollouts import Rollouts
from herd.rl.team import Team
from herd.rl.watch import Watch
from herd.rl.weights import Publish
from herd.rl.worker import Here, Opening, Worker
from herd.stages.distill import check_tokenizer
from herd.stages.language import heldout_loss, open_model, train_language
from herd.stages.model_folder import save_model
from herd.train.loop import Hook, LossFunction
from herd.train.teacher import Teacher

JOURNAL = "journal"


def rl(config: RlConfig, model: Path, data: Path, out: Path) -> Path:
    """Train the model folder `model` in environments; returns the finished folder `out`, with the journal of what was
    drawn."""
    parallel = Parallel(start(config.parallel))
    refuse_readers(config, parallel)
    stage = Stage("rl", out, config=config, parents={"model": model, "data": data, **config.inputs()})
    if config.mode != "sync" and not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # drawing and training share the cores
    network, tokenizer = open_model(model, config, stage, parallel)
    processor = ImageProcessor(network.config.vision)
    trained = LoadedModel(config=network.config, transformer=network, tokenizer=tokenizer, processor=processor)
    opening = Opening(
        config=config,
        model=model,
        data=data,
        folder=Path.cwd(),
        dtype=network.embedding.weight.dtype,
        num_threads=torch.get_num_threads(),
    )
    publish = Publish(network, config.steps_behind, parallel)
    loss_fn = with_other_readers(policy_loss(config.loss, parallel), config, network, tokenizer, model)
    hooks: list[Hook] = [publish, *heldout_loss(network, tokenizer, data, config, parallel)]
    first: RolloutBatches | None = None
    tensors = publish.whole({})
    if parallel.first:
        environments = opening.environments()
        prompts = Prompts(trained, environments, config.system_prompts)
        publish.rollouts = open_rollouts(config, opening, tensors, prompts, stage)
        first = RolloutBatches(
            publish.rollouts, advantage=config.advantage, prompts=prompts, patch_id=tokenizer.ids.patch
        )
        hooks.insert(1, Watch(publish.rollouts, environments))
    del tensors
    batches = DealtBatches(first, config.num_steps, publish.start, parallel)
    try:
        train_language(network, batches, config, stage, parallel, hooks=hooks, loss_fn=loss_fn)
    finally:
        batches.cancel()
    return save_model(network, tokenizer, stage, parallel)


def refuse_readers(config: RlConfig, parallel: Parallel) -> None:
    """Other models read whole answers by a model of one rank."""
    asked = {"exact": config.exact, "teacher": config.teacher, "loss.reference_kl": config.loss.reference_kl}
    for name, value in asked.items():
        if value and parallel.is_distributed:
            raise HerdError(f"{name}={value} reads answers by whole models, on one rank: leave it or --parallel out")


def with_other_readers(
    loss_fn: LossFunction[Batch], config: RlConfig, network: Transformer, tokenizer: Tokenizer, model: Path
) -> LossFunction[Batch]:
    """The loss with what the config asks other models to read."""

    def frozen(folder: Path) -> Teacher:
        opened = load(folder, dtype=network.embedding.weight.dtype)
        check_tokenizer(tokenizer_hash(opened.tokenizer), folder, tokenizer)
        return Teacher(opened.transformer)

    if not (config.exact or config.loss.reference_kl or config.teacher):
        return loss_fn
    return with_readers(
        loss_fn,
        engine=Teacher(network, as_drawn=True) if config.exact else None,
        reference=frozen(model) if config.loss.reference_kl else None,
        teacher=frozen(config.inputs()["teacher"]) if config.teacher else None,
        teacher_weight=config.teacher_weight,
    )


def open_rollouts(
    config: RlConfig, opening: Opening, tensors: Mapping[str, Tensor], prompts: Prompts, stage: Stage
) -> Rollouts:
    """What draws, with engines of its own; `tensors` are the whole weights to begin with."""
    cells = {name: environment.cells for name, environment in prompts.environments.items()}
    window = max(1, int(config.window * (config.lag + 1) * config.groups))
    return Rollouts(
        open_worker(opening, tensors, prompts),
        Curriculum(cells, config.shares(), config.curriculum),
        Journal(stage.work / JOURNAL),
        seed=config.seed,
        num_steps=config.num_steps,
        groups=config.groups,
        group_size=config.group_size,
        lag=config.steps_behind,
        window=window if config.mode == "inflight" else None,
        max_groups=config.max_groups,
        prepare=packing(config, prompts.model.config),
    )


def packing(config: RlConfig, shape: ModelConfig) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]:
    """What makes the engine's weights of the trainer's."""
    if config.quantize == "none":
        return lambda tensors: tensors
    scheme = Scheme(name=config.quantize)
    return partial(quantize_tensors, shapes=quantizable(skeleton(shape), scheme, shape), scheme=scheme)


def open_worker(opening: Opening, tensors: Mapping[str, Tensor], prompts: Prompts) -> Worker:
    """Who draws, where the config says; child processes are given room for `tensors`."""
    config = opening.config
    if config.on == "thread":
        return Here(opening.open(prompts.environments))
    if config.on == "process":
        return Team(Processes(opening, tensors), config.workers)
    return Team(Actors(opening, config.workers), config.workers)
