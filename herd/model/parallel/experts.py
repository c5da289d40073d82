"""Experts that live on several ranks: rows travel to their experts and back, uneven as they come, none dropped.

The rows of one expert arrive in the order of the ranks that sent them, which is the order of the tokens in the whole
batch: an expert computes the very product that one rank alone would.
"""

# R rows, D width, E experts of all ranks, P ranks, O experts that this rank owns

import torch
from torch import Tensor

from herd.model.gather import Gather
from herd.model.lora import AdaptedMoE
from herd.model.moe import MoE
from herd.model.parallel.mesh import Mesh, bounds, copy_in, exchange, sum_out


class MeshMoE(MoE):
    """A mixture whose experts are shared out along `expert`, and their hidden widths along `tensor`."""

    mesh: Mesh

    def experts(self, rows_RD: Tensor, count_E: Tensor) -> Tensor:
        rows_RD = copy_in(rows_RD, self.mesh, "tensor")
        if self.mesh.sizes["expert"] == 1:
            return sum_out(super().experts(rows_RD, count_E), self.mesh, "tensor")
        count_PO, send, receive = self.routes(count_E)
        rows_RD = exchange(rows_RD, self.mesh, send, receive, "expert")
        # They come by rank and within a rank by expert; they are computed by expert and within an expert by rank.
        owner_R = torch.arange(count_PO.shape[1], device=count_PO.device).repeat(len(count_PO))
        owner_R = owner_R.repeat_interleave(count_PO.flatten())
        order_R = torch.argsort(owner_R, stable=True)
        back_R = torch.empty_like(order_R)
        back_R[order_R] = torch.arange(len(order_R), device=order_R.device)
        out_RD = super().experts(Gather.apply(rows_RD, order_R, back_R), count_PO.sum(0))
        out_RD = sum_out(out_RD, self.mesh, "tensor")
        return exchange(Gather.apply(out_RD, back_R, order_R), self.mesh, receive, send, "expert")

    def routes(self, count_E: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """How many rows each rank has for each expert of this one; how many this one has for each rank, and each rank
        for this one. The device is waited for once."""
        mesh, size = self.mesh, self.mesh.sizes["expert"]
        edges = bounds(len(count_E), size)
        count_PE = torch.stack(mesh.gather(count_E, "expert", [len(count_E)] * size))
        begin, end = edges[mesh.place["expert"]], edges[mesh.place["expert"] + 1]
        count_PO = count_PE[:, begin:end]
        sends = torch.stack([part.sum() for part in count_E.tensor_split(edges[1:-1])])
        send, receive = torch.stack([sends, count_PO.sum(1)]).tolist()
        return count_PO, send, receive


class MeshAdaptedMoE(MeshMoE, AdaptedMoE):
    """The same of a mixture whose experts have adapters."""


def share_out(moe: MoE, mesh: Mesh) -> None:
    """Have a mixture work with its part of the experts; the parameters are cut elsewhere."""
    moe.__class__ = MeshAdaptedMoE if isinstance(moe, AdaptedMoE) else MeshMoE
    assert isinstance(moe, MeshMoE)
    moe.mesh = mesh
