"""A small training that any mesh must make the same: random documents of uneven length, every kind of layer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.utils._pytree import tree_map

from herd.bench.oracles import random_model
from herd.bench.parity import SCOUT_LIKE
from herd.config import LoraConfig, ModelConfig, MoEConfig, OptimizerConfig, ParallelConfig
from herd.core.batch import Batch, Images
from herd.model.formats import huggingface
from herd.model.formats.stored import Stored
from herd.model.formats.weights import skeleton
from herd.model.lora import adapters, add_adapters, with_adapters
from herd.model.moe import MoE
from herd.model.parallel import Parallel, local
from herd.model.parallel.mesh import Mesh, bounds
from herd.model.transformer import Transformer
from herd.train.balance import Balancer
from herd.train.losses import cross_entropy
from herd.train.optimizer import Optimizer
from herd.train.passes import square_sum

SHAPE = replace(SCOUT_LIKE, dim=32, num_layers=4, head_dim=16, moe=MoEConfig(num_experts=4, ffn_dim=32, every=2))


@dataclass(frozen=True)
class RandomBatches:
    """Batch s is a function of s."""

    lengths: tuple[int, ...] = (50, 1, 9, 33, 16, 19)
    pictures: bool = False
    num_steps: int = 50
    unit: str = "tokens"

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        total = sum(self.lengths)
        tokens_N = torch.randint(20, SHAPE.vocab_size, (total,), generator=generator)
        weights_N = (torch.rand(total, generator=generator) < 0.8).float()
        starts_S = torch.tensor([0, *self.lengths]).cumsum(0).to(torch.int32)
        images = None
        if self.pictures:  # two tiles in the first document, of 16 tokens each
            rows = torch.cat([torch.arange(3, 19), torch.arange(20, 36)])
            tokens_N[rows] = SHAPE.special.patch
            images = Images(tiles=torch.randn(2, 3, 32, 32, generator=generator), rows=rows)
        return Batch(
            tokens_N=tokens_N,
            targets_N=torch.randint(20, SHAPE.vocab_size, (total,), generator=generator),
            weights_N=weights_N / weights_N.sum(),
            positions_N=torch.cat([torch.arange(n) for n in self.lengths]),
            starts_S=starts_S,
            images=images,
            kinds_N=torch.zeros(total, dtype=torch.int8),
        )


def small_model(config: ModelConfig = SHAPE, dtype: torch.dtype = torch.float32) -> Transformer:
    return random_model(config, seed=0, scale=0.1).to(dtype).requires_grad_(True).train()


def loss_of(model: Transformer, batch: Batch) -> Tensor:
    hidden_ND = model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images)
    return cross_entropy(hidden_ND, model.unembedding.weight, batch.targets_N, batch.weights_N)[0]


def adapted(lora: LoraConfig, config: ModelConfig = SHAPE) -> Transformer:
    """A small model with random adapters, B too."""
    model = small_model(config)
    add_adapters(model, lora)
    generator = torch.Generator().manual_seed(3)
    for _, parameter in adapters(model):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def gradients(
    parallel: ParallelConfig, batches: RandomBatches, config: ModelConfig = SHAPE, lora: LoraConfig | None = None
) -> dict[str, Tensor]:
    """The loss of one step, and the gradient of every parameter, joined."""
    ranks = Parallel(Mesh(parallel))
    model = small_model(config) if lora is None else adapted(lora, config)
    ranks.apply(model)
    loss = loss_of(model, ranks.share(batches, config.chunk_size).batch(0))
    loss.backward()
    parameters = dict(model.named_parameters())
    ranks.sum_gradients(parameters)
    found = {"loss": ranks.mesh.sum(loss.detach().double(), tuple(ranks.mesh.sizes))}
    found["norm"] = ranks.norm({n: square_sum(local(p.grad)) for n, p in parameters.items() if p.grad is not None})
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            grad = local(parameter.grad)
            found[name] = ranks.layouts[name].join(grad) if name in ranks.layouts else grad
    return found


@torch.no_grad()
def rows_of_experts(parallel: ParallelConfig, config: ModelConfig) -> Tensor:
    """What the first mixture's experts make of this rank's part of 30 rows; the expert 1 has none."""
    ranks = Parallel(Mesh(parallel))
    model = small_model(config)
    ranks.apply(model)
    rows_RD = torch.randn(30, config.dim, generator=torch.Generator().manual_seed(0))
    owner_R = torch.arange(30) % config.moe.num_experts
    owner_R[owner_R == 1] = 0
    edges, place = bounds(30, ranks.mesh.sizes["expert"]), ranks.mesh.place["expert"]
    own = owner_R[edges[place] : edges[place + 1]]
    order = own.argsort(stable=True)
    count_E = own.bincount(minlength=config.moe.num_experts)
    out_RD = torch.empty(len(own), config.dim)
    mixture = model.layers[0].ffn
    assert isinstance(mixture, MoE)
    out_RD[order] = mixture.experts(rows_RD[edges[place] : edges[place + 1]][order], count_E)
    return out_RD


def hidden_states(parallel: ParallelConfig, batches: RandomBatches) -> Tensor:
    """The hidden states of this rank's tokens, in bf16."""
    ranks = Parallel(Mesh(parallel))
    model = small_model(dtype=torch.bfloat16)
    ranks.apply(model)
    batch = ranks.share(batches, SHAPE.chunk_size).batch(0)
    hidden: Tensor = model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images)
    return hidden.detach()


def bytes_read(work: Callable[[], object]) -> list[int]:
    """Of each read from a file of tensors that `work` makes."""
    counts: list[int] = []
    plain = Stored._read_into

    def counted(self: Stored, file: Any, out: Tensor, start: int) -> None:
        counts.append(out.nbytes)
        plain(self, file, out, start)

    Stored._read_into = counted  # type: ignore[method-assign]
    try:
        work()
    finally:
        Stored._read_into = plain  # type: ignore[method-assign]
    return counts


def loaded(mesh: Mesh, folder: Path) -> dict[str, Any]:
    """How a rank opens a folder: the bytes that it reads, of which of its parameters more than its part, and whether
    they are those of a whole model that is cut."""
    ranks, weights = Parallel(mesh), huggingface.open_folder(folder)
    model = skeleton(weights.config)
    ranks.apply(model)
    counts = bytes_read(lambda: ranks.read(model, weights, dtype=torch.bfloat16, device=torch.device("cpu")))
    whole = huggingface.load(folder, dtype=torch.bfloat16)
    Parallel(mesh).apply(whole)
    parts = {name: local(p.detach()) for name, p in model.named_parameters()}
    same = all(torch.equal(parts[name], local(p.detach())) for name, p in whole.named_parameters())
    kinds = all(type(p) is type(q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))
    return {
        "read": sum(counts),
        "most": max(counts),
        "own": sum(p.numel() * 4 for p in parts.values()),
        "same": same and kinds,
    }


def loaded_on(parallel: ParallelConfig, folder: Path) -> dict[str, Any]:
    """The same, and a step of training with what was opened."""
    found = loaded(Mesh(parallel), folder)
    ranks, weights = Parallel(Mesh(parallel)), huggingface.open_folder(folder)
    model = skeleton(weights.config)
    ranks.apply(model)
    ranks.read(model, weights, dtype=torch.float32, device=torch.device("cpu"))
    loss = loss_of(model.train(), ranks.share(RandomBatches(), SHAPE.chunk_size).batch(0))
    loss.backward()
    return found | {"loss": float(ranks.mesh.sum(loss.detach().double(), tuple(ranks.mesh.sizes)))}


def adapters_read(parallel: ParallelConfig, folder: Path) -> dict[str, Any]:
    """The bytes that a rank reads for a model with adapters, and the adapters as they are written, whole."""
    ranks, base = Parallel(Mesh(parallel)), huggingface.open_folder(folder)
    model = skeleton(base.config)
    add_adapters(model, LoraConfig(rank=3))
    shapes = {name: tuple(parameter.shape) for name, parameter in adapters(model)}
    ranks.apply(model)
    weights = with_adapters(base, shapes, lambda name: torch.arange(prod(shapes[name])).view(shapes[name]).float())
    counts = bytes_read(lambda: ranks.read(model, weights, dtype=torch.float32, device=torch.device("cpu")))
    held = ranks.weights(model)
    return {"read": sum(counts), **{name: held.read(name) for name in shapes}}


def described(ranks: Parallel, model: Transformer) -> dict[str, Tensor]:
    return {name: ranks.checkpoint_view(name, local(p.detach())) for name, p in model.named_parameters()}


def saved(parallel: ParallelConfig, folder: Path) -> None:
    """Save a model's shards, copied first as a checkpoint that is written meanwhile does."""
    ranks, model = Parallel(Mesh(parallel)), small_model()
    ranks.apply(model)
    dcp.save(tree_map(lambda x: x.detach().clone(), described(ranks, model)), checkpoint_id=folder)


def resharded(parallel: ParallelConfig, folder: Path) -> dict[str, Tensor]:
    """All parameters of a model that had others before it loaded `folder`, whole."""
    ranks, model = Parallel(Mesh(parallel)), small_model()
    ranks.apply(model)
    for parameter in model.parameters():
        local(parameter.detach()).zero_()
    dcp.load(described(ranks, model), checkpoint_id=folder)
    weights = ranks.weights(model)
    return {name: weights.read(name) for name, _ in model.named_parameters()}


def folded(parallel: ParallelConfig) -> dict[str, Tensor]:
    """The routers and the biases, whole, after a step whose end folds biases."""
    ranks, model = Parallel(Mesh(parallel)), small_model()
    ranks.apply(model)
    batches = ranks.share(RandomBatches(), SHAPE.chunk_size)
    optimizer = Optimizer(model, OptimizerConfig(), batches.num_steps, ranks)
    balancer = Balancer(model, 0.05, batches, loss_of, reduce=ranks.sum_counts)
    last = batches.num_steps - 1
    with torch.no_grad():
        loss_of(model, batches.batch(last))
    balancer.bias_LE += torch.tensor([[-0.3, 0.1, 0.4, -0.2]])
    reported = balancer.after_step(last, optimizer, updated=True)
    weights = ranks.weights(model)
    routers = {name: weights.read(name) for name, _ in model.named_parameters() if "router" in name}
    return routers | {"bias": torch.tensor(reported["fold"]["largest_bias"]), "drift": balancer.drift_LE}  # type: ignore[index]
