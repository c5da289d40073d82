"""The ranks as a mesh with named axes, and the collectives along one of them.

Axes, from the outermost to that whose ranks are neighbours: `replicate` and `shard` (data parallel, without and with
sharded parameters), `expert` (data parallel, each rank keeping some experts), `context` (each rank a part of the token
axis), `tensor` (each rank a part of every matrix). A world of one has no process group, and no collective does anything
there. Gloo between CPUs, NCCL between GPUs (written against PyTorch's operators, untested on hardware).
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from herd.config import PARALLEL_AXES as AXES
from herd.config import ParallelConfig
from herd.core.device import choose_device
from herd.core.ranks import world
from herd.errors import HerdError

DATA = ("replicate", "shard", "expert")
"""Axes whose ranks take different documents."""
TOKENS = (*DATA, "context")
"""Axes whose ranks take different tokens."""


def bounds(total: int, parts: int) -> list[int]:
    """Where `parts` nearly equal parts of `total` begin, the last entry `total`; the first ones are the larger."""
    return list(accumulate((total // parts + (part < total % parts) for part in range(parts)), initial=0))


class Mesh:
    """Sizes, this process's place, and collectives along an axis; sums are of what all ranks have there."""

    def __init__(self, config: ParallelConfig) -> None:
        self.sizes = {axis: getattr(config, axis) for axis in AXES}
        self.devices: DeviceMesh | None = None
        if config.world > 1:
            kind = "cuda" if dist.get_backend() == "nccl" else "cpu"
            self.devices = init_device_mesh(kind, tuple(self.sizes.values()), mesh_dim_names=AXES)
        self.place = {axis: self.devices.get_local_rank(axis) if self.devices else 0 for axis in AXES}
        self.sent_bytes = 0
        """What this rank has sent so far, FSDP's share aside: a sum counts twice, as a ring sends it."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return not any(self.place.values())

    def index(self, axes: Sequence[str]) -> int:
        """This rank's number among those along several axes, the last one running fastest."""
        index = 0
        for axis in axes:
            index = index * self.sizes[axis] + self.place[axis]
        return index

    def count(self, axes: Sequence[str]) -> int:
        """How many ranks there are along several axes."""
        return int(torch.tensor([self.sizes[axis] for axis in axes]).prod())

    def group(self, axis: str) -> dist.ProcessGroup:
        assert self.devices is not None
        return self.devices.get_group(axis)

    def sum(self, x: Tensor, axes: Sequence[str]) -> Tensor:
        """In place, the sum over the ranks along `axes`; returns `x`."""
        for axis in axes:
            if self.sizes[axis] > 1:
                self.sent_bytes += 2 * x.nbytes * (self.sizes[axis] - 1) // self.sizes[axis]
                dist.all_reduce(x, group=self.group(axis))
        return x

    def gather(self, x: Tensor, axis: str, lengths: Sequence[int], dim: int = 0) -> list[Tensor]:
        """What each rank along `axis` has, `lengths` long along `dim`."""
        if self.sizes[axis] == 1:
            return [x]
        front = x.transpose(0, dim)
        filled = x.new_zeros(max(lengths), *front.shape[1:])
        filled[: len(front)] = front
        parts = [torch.empty_like(filled) for _ in lengths]
        self.sent_bytes += filled.nbytes * (self.sizes[axis] - 1)
        dist.all_gather(parts, filled, group=self.group(axis))
        return [part[:length].transpose(0, dim) for part, length in zip(parts, lengths, strict=True)]

    def exchange(self, rows: Tensor, send: Sequence[int], receive: Sequence[int], axis: str) -> Tensor:
        """Rows to each rank along `axis` in turn, `send` of them; back come `receive` of each. Without gradient."""
        if self.sizes[axis] == 1:
            return rows
        own = self.place[axis]
        self.sent_bytes += (sum(send) - send[own]) * rows[:1].nbytes
        out = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(out, rows.contiguous(), list(receive), list(send), group=self.group(axis))
        return out

    def pass_on(self, tensors: Sequence[Tensor], length: int, axis: str) -> list[Tensor]:
        """Give tensors to the next rank along `axis`, and get the previous one's, `length` long."""
        group, size, own = self.group(axis), self.sizes[axis], self.place[axis]
        after, before = (dist.get_global_rank(group, (own + step) % size) for step in (1, -1))
        got = [tensor.new_empty(length, *tensor.shape[1:]) for tensor in tensors]
        operations = [dist.P2POp(dist.isend, x.contiguous(), after, group) for x in tensors if x.numel()]
        operations += [dist.P2POp(dist.irecv, x, before, group) for x in got if x.numel()]
        self.sent_bytes += sum(x.nbytes for x in tensors)
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()
        return got

    def wait(self) -> None:
        """Until every rank is here."""
        if self.devices is not None:
            dist.barrier()


class _CopyIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mesh, axis):  # type: ignore[no-untyped-def]
        ctx.along = mesh, axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        mesh, axis = ctx.along
        return mesh.sum(grad.contiguous().clone(), [axis]), None, None


def copy_in(x: Tensor, mesh: Mesh, axis: str) -> Tensor:
    """`x`, which all ranks along `axis` have, before each does a part of the work: the gradient is the parts' sum."""
    out: Tensor = _CopyIn.apply(x, mesh, axis) if mesh.sizes[axis] > 1 else x
    return out


class _SumOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mesh, axis):  # type: ignore[no-untyped-def]
        return mesh.sum(x.contiguous().clone(), [axis])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None, None


def sum_out(x: Tensor, mesh: Mesh, axis: str) -> Tensor:
    """The sum of the parts that the ranks along `axis` have; each has the whole gradient."""
    out: Tensor = _SumOut.apply(x, mesh, axis) if mesh.sizes[axis] > 1 else x
    return out


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, mesh, send, receive, axis):  # type: ignore[no-untyped-def]
        ctx.way = mesh, send, receive, axis
        return mesh.exchange(rows, send, receive, axis)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        mesh, send, receive, axis = ctx.way
        return mesh.exchange(grad, receive, send, axis), None, None, None, None


def exchange(rows: Tensor, mesh: Mesh, send: Sequence[int], receive: Sequence[int], axis: str) -> Tensor:
    """`Mesh.exchange` with its gradient, which goes the way back."""
    out: Tensor = _Exchange.apply(rows, mesh, send, receive, axis)
    return out


def start(config: ParallelConfig) -> Mesh:
    """Join the other processes that torchrun, Slurm or Ray started, if any, and arrange them on the mesh of
    `config`."""
    started = world()
    if config.world != started:
        product = " x ".join(f"{axis} {getattr(config, axis)}" for axis in AXES)
        many = f"{started} processes were started" if started > 1 else "one process was started"
        raise HerdError(
            f"parallel: {product} = {config.world} ranks, but {many}: change a degree (--parallel.replicate …), "
            f"or start them with torchrun --nproc-per-node {config.world} -m herd …"
        )
    if started > 1 and not dist.is_initialized():
        options: dict[str, Any] = {}
        device = choose_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            options = {"device_id": device}
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **options)
    return Mesh(config)


def stop() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
