"""A plain `Transformer` made to run on a mesh, from outside; and what a training asks of its ranks.

The model, the loop and the losses are those of one rank. `Parallel` cuts parameters and batches, hooks the collectives
into the blocks, and joins gradients, norms and metrics again. In a world of one it changes nothing.

FSDP2 gathers and scatters along `shard`, and sums along `replicate` too then. All other sums of gradients come after
the backward, in fp32 and in few large runs; they do not overlap with it. Left out: pipeline and sequence parallelism.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from herd.config import ParallelConfig
from herd.core.batch import Batch
from herd.core.device import send, sum_dtype
from herd.core.metrics import Mean, Number
from herd.data.loading.batches import Batches
from herd.errors import HerdError
from herd.model.formats.weights import Weights, cast, read_boxes
from herd.model.moe import MoE
from herd.model.parallel import context, tensor
from herd.model.parallel.experts import share_out
from herd.model.parallel.layout import Layout, Shard, layouts
from herd.model.parallel.mesh import TOKENS, Mesh
from herd.model.parallel.pieces import SharedBatches
from herd.model.transformer import Transformer

BUCKET_BYTES = 128 * 2**20
"""Gradients are summed in runs of about this size."""


def local(x: Tensor) -> Tensor:
    """What this rank has of a parameter or gradient, to be changed in place."""
    return x.to_local() if isinstance(x, DTensor) else x


class Parallel:
    """A mesh, and how the parameters of the model that it was applied to are laid out on it."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.layouts: dict[str, Layout] = {}

    def apply(self, model: Transformer) -> None:
        """Cut the model in place, which every rank has whole, or as a skeleton without memory (`read` then fills its
        part)."""
        mesh, sizes = self.mesh, self.mesh.sizes
        if not self.is_distributed:
            return
        if sizes["expert"] > model.config.moe.num_experts:
            raise HerdError(
                f"parallel expert={sizes['expert']} is more than num_experts={model.config.moe.num_experts}: "
                "give the ranks to another axis"
            )
        parameters = dict(model.named_parameters())
        self.layouts = layouts(model.config, {name: tuple(p.shape) for name, p in parameters.items()}, mesh)
        if sizes["tensor"] > 1:
            tensor.check(model, sizes["tensor"])
            tensor.split_blocks(model, mesh)
        if sizes["context"] > 1:
            context.make_ring(model, mesh)
        for module in model.modules():
            if isinstance(module, MoE):
                share_out(module, mesh)
        for name, parameter in parameters.items():
            part = self.layouts[name].take_unsharded(parameter.detach())
            place, _, last = name.rpartition(".")
            made = nn.Parameter(part.clone(), requires_grad=parameter.requires_grad)
            setattr(model.get_submodule(place), last, made)
        if sizes["shard"] > 1:
            self._shard(model)

    def read(self, model: Transformer, weights: Weights, *, dtype: torch.dtype, device: torch.device) -> None:
        """Give a skeleton that was applied this rank's part of `weights`, one parameter after the other. Where they lie
        in safetensors, nothing but this part is read."""
        state: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if name not in self.layouts:
                state[name] = cast(name, weights.read(name), dtype, device)
                continue
            layout = self.layouts[name]
            own = cast(name, read_boxes(weights, name, layout.boxes(), local(parameter).shape), dtype, device)
            state[name] = as_dtensor(own, parameter)
        model.load_state_dict(state, assign=True)
        model.eval()

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one rank."""
        return self.mesh.count(tuple(self.mesh.sizes)) > 1

    def _shard(self, model: Transformer) -> None:
        assert self.mesh.devices is not None
        axes = ("replicate", "shard") if self.mesh.sizes["replicate"] > 1 else ("shard",)
        submesh = self.mesh.devices[axes]
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        for module in (*([model.vision] if model.vision is not None else []), *model.layers, model):
            fully_shard(module, mesh=submesh, mp_policy=policy)
            assert isinstance(module, FSDPModule)
            # Losses are divided by what is the whole step's: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def share(self, batches: Batches[Batch], chunk_size: int) -> Batches[Batch]:
        """The same steps, of each this rank's part."""
        return SharedBatches(batches, self.mesh, chunk_size) if self.is_distributed else batches

    def sum_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """After a backward: each gradient is that of the whole batch."""
        waiting: dict[tuple[str, ...], list[Tensor]] = {}
        for name, parameter in parameters.items():
            if parameter.grad is not None and name in self.layouts and self.layouts[name].partial:
                waiting.setdefault(self.layouts[name].partial, []).append(local(parameter.grad))
        for axes, grads in waiting.items():
            for run in buckets_of(grads):
                flat = self.mesh.sum(torch.cat([grad.flatten().float() for grad in run]), axes)
                for grad, part in zip(run, flat.split([grad.numel() for grad in run]), strict=True):
                    grad.copy_(part.view_as(grad))

    def norm(self, squares: Mapping[str, Tensor]) -> Tensor:
        """The norm over all gradients of all ranks, each element counted once, from the sum of squares of each."""
        parts = [square.to(sum_dtype(square.device)) / self.copies(name) for name, square in squares.items()]
        return self.mesh.sum(torch.stack(parts).sum(), tuple(self.mesh.sizes)).sqrt()

    def shape(self, name: str, shard: Tensor) -> tuple[int, ...]:
        """Of the whole parameter."""
        return self.layouts[name].shape if name in self.layouts else tuple(shard.shape)

    def copies(self, name: str) -> int:
        """How many ranks have the same shard of a parameter."""
        return self.layouts[name].copies if name in self.layouts else 1

    def join_matrices(self, name: str, shard: Tensor) -> Tensor:
        """See Layout."""
        return self.layouts[name].join_matrices(shard) if name in self.layouts else shard

    def join(self, name: str, shard: Tensor) -> Tensor:
        """The whole of a tensor with the layout of a parameter; every rank joins the same ones in the same order."""
        return self.layouts[name].join(shard) if name in self.layouts else shard

    def take(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a tensor with the layout of a parameter."""
        return self.layouts[name].take(whole) if name in self.layouts else whole

    def take_matrices(self, name: str, matrices: Tensor) -> Tensor:
        """See Layout."""
        return self.layouts[name].take_matrices(matrices) if name in self.layouts else matrices

    def checkpoint_view(self, name: str, shard: Tensor) -> Tensor:
        """A tensor with the layout of the parameter, as the checkpoint library takes it."""
        layout = self.layouts.get(name)
        return Shard(shard, layout) if layout is not None and layout.splits else shard

    def sum_counts(self, counts: Tensor) -> Tensor:
        """In place, counts of tokens over all ranks that have different ones."""
        return self.mesh.sum(counts, TOKENS)

    def total(
        self, loss: Tensor, size: int, metrics: Mapping[str, Number | Mean], known: Sequence[Tensor] = ()
    ) -> tuple[float, float, dict[str, float], list[float]]:
        """The loss, the batch's size and the metrics over all ranks: numbers are summed, means are those of all that
        was counted, left out where nothing was. The names are the same on all ranks. `known` are numbers that all ranks
        have already. The device is waited for once."""
        values = (loss, size / self.mesh.sizes["tensor"], *metrics.values())  # those ranks have the same tokens
        device, wide = loss.device, sum_dtype(loss.device)
        sums = [value.total if isinstance(value, Mean) else value for value in values]
        counts = [value.count if isinstance(value, Mean) else -1.0 for value in values]
        there = [x for x in sums if isinstance(x, Tensor)]
        here = [x for x in sums if not isinstance(x, Tensor)]
        parts = [torch.stack([x.detach().to(wide) for x in there])] if there else []
        parts.append(send(torch.tensor([*here, *counts], dtype=wide), device))
        summed = self.mesh.sum(torch.cat(parts), tuple(self.mesh.sizes))
        numbers = torch.cat([summed, *(x.to(wide)[None] for x in known)]).tolist()
        read, rest = numbers[: len(summed)], numbers[len(summed) :]
        of_there, of_here, counts = iter(read[: len(there)]), iter(read[len(there) : len(sums)]), read[len(sums) :]
        reduced = [next(of_there if isinstance(x, Tensor) else of_here) for x in sums]
        pairs = zip(metrics, reduced[2:], counts[2:], strict=True)
        return reduced[0], reduced[1], {name: a / b if b > 0 else a for name, a, b in pairs if b}, rest

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.mesh.first

    def weights(self, model: Transformer) -> Weights:
        """The whole model's weights; every rank reads the same names in the same order."""
        parameters = dict(model.named_parameters())

        def read(name: str) -> Tensor:
            return self.join(name, local(parameters[name].detach())).cpu()

        return Weights(config=model.config, dtype=parameters["embedding.weight"].dtype, read=read)


def as_dtensor(own: Tensor, parameter: Tensor) -> Tensor:
    """What a rank has of a parameter as the parameter is: of FSDP's a DTensor."""
    if not isinstance(parameter, DTensor):
        return own
    return DTensor.from_local(
        own,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def buckets_of(grads: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Tensors in lists of about BUCKET_BYTES."""
    run: list[Tensor] = []
    for grad in grads:
        run.append(grad)
        if sum(x.numel() * 4 for x in run) >= BUCKET_BYTES:
            yield run
            run = []
    if run:
        yield run


ALONE = Parallel(Mesh(ParallelConfig()))
"""A world of one."""
