"""What pre-training, mid-training and fine-tuning share: opening the model that they begin with, and the training."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from herd.config import LanguageTrainingConfig
from herd.core.batch import Batch, split_batch
from herd.core.device import choose_device, naming_out_of_memory
from herd.core.lineage import Stage
from herd.data.loading.batches import Batches
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.model.formats import huggingface, peft
from herd.model.formats.source import Source, find_source
from herd.model.formats.weights import Weights, skeleton
from herd.model.lora import adapters, add_adapters, initial, with_adapters
from herd.model.parallel import Parallel
from herd.model.transformer import Transformer
from herd.train.balance import Balancer
from herd.train.dtype import training_dtype
from herd.train.heldout import HeldoutBatches, HeldoutLoss
from herd.train.loop import Hook, LossFunction, train
from herd.train.losses import language_loss
from herd.train.trainable import set_trainable


def open_model(
    folder: Path, config: LanguageTrainingConfig, stage: Stage, parallel: Parallel
) -> tuple[Transformer, Tokenizer]:
    """The model of a folder ready to train on this rank, with the parameters frozen that are not to be trained, and
    with the adapters that the config asks for; and its tokenizer. A folder that is an adapter is trained on as the
    adapter of its base, or without adapters as the merged model."""
    source, device = find_source(folder), choose_device()
    adapted = config.lora.rank is not None
    weights = trainable_weights((source.base if adapted else None) or source)
    dtype = training_dtype(config.dtype, stage)
    model = skeleton(weights.config)
    tokenizer = source.tokenizer(model.config.special)
    if adapted:
        add_adapters(model, config.lora)
        weights = first_adapters(weights, model, config, source)
    else:
        set_trainable(model, config.trainable)
    parallel.apply(model)
    with naming_out_of_memory("take more ranks (--parallel.shard, --parallel.expert, --parallel.tensor)"):
        parallel.read(model, weights, dtype=dtype, device=device)
    return model, tokenizer


def trainable_weights(source: Source) -> Weights:
    """What a stage can begin with: a Hugging Face folder or an adapter; other formats and quantised weights are
    refused."""
    return huggingface.open_folder(source.path) if source.base is None else source.weights()


def first_adapters(base: Weights, model: Transformer, config: LanguageTrainingConfig, source: Source) -> Weights:
    """The weights of a model with adapters: new ones, or those of the adapter folder that the training begins with."""
    shapes = {name: tuple(parameter.shape) for name, parameter in adapters(model)}
    if source.base is None:
        return with_adapters(base, shapes, lambda name: initial(name, shapes[name], config.seed))
    held = peft.to_parameters(base.config, peft.read_pairs(source.path, base.config), shapes, config.lora.scale)
    if held is None:
        raise HerdError(
            f"{source.path} has adapters of another rank or on other matrices than rank={config.lora.rank}, "
            f"targets={config.lora.targets}: give the same, or herd merge it and train new ones"
        )
    return with_adapters(base, shapes, held.__getitem__)


def heldout_loss(
    model: Transformer, tokenizer: Tokenizer, data: Path, config: LanguageTrainingConfig, parallel: Parallel
) -> list[Hook]:
    """The hook that the config asks for, if it does."""
    if not config.heldout_every:
        return []
    batches = HeldoutBatches(data, tokenizer)
    shared = parallel.share(batches, model.config.chunk_size)
    loss_fn = language_loss(0.0, parallel)
    every = config.heldout_every
    return [HeldoutLoss(model, shared, batches.num_bytes, loss_fn, every=every, parallel=parallel)]


def train_language(
    model: Transformer,
    batches: Batches[Batch],
    config: LanguageTrainingConfig,
    stage: Stage,
    parallel: Parallel,
    *,
    hooks: Sequence[Hook] = (),
    loss_fn: LossFunction[Batch] | None = None,
) -> None:
    """Train a model, applied to the ranks already, to predict the next token; `loss_fn` replaces the loss of that."""
    shared = parallel.share(batches, model.config.chunk_size)
    loss_fn = loss_fn or language_loss(config.balance_coefficient, parallel)
    rate = 0.0 if config.lora.rank is not None else config.bias_update_rate
    routers = [parameter for name, parameter in model.named_parameters() if "router" in name]
    if rate and any(not parameter.requires_grad for parameter in routers):
        raise HerdError(
            f"bias_update_rate={config.bias_update_rate} changes the routers, which trainable={config.trainable} "
            "leaves out: set bias_update_rate=0, or add layers.*.router.*"
        )
    balancer = Balancer(model, rate, shared, loss_fn, reduce=parallel.sum_counts)
    model.recompute, parts = config.recompute, config.micro_batches
    if parts > 1 and config.balance_coefficient:
        raise HerdError(f"balance_coefficient needs a whole batch, micro_batches={parts}: set bias_update_rate instead")
    if parts > 1 and parallel.mesh.sizes["context"] > 1:
        raise HerdError(f"context ranks cut every batch themselves: set micro_batches={parts} to 1")
    split = partial(split_batch, count=parts)
    train(model, shared, loss_fn, config, stage, hooks=[balancer, *hooks], parallel=parallel, split=split)
