"""A rank's part of the batch of a step. Weights stay as they are: losses and gradients are summed over ranks.

Documents are dealt out whole along the data axes, in their order and evenly by tokens. Along `context` the token axis
of a data rank's documents is cut into twice as many pieces as there are ranks, and a rank takes one from the front and
the one as far from the back: where one long document fills the batch, the late pieces see most, and each rank then has
the same work. A cut goes to the nearest place where a document or a chunk begins if that is within a quarter of a
piece: local layers need nothing from other ranks there. Along `tensor` all have the same tokens, and learn some each.

A rank may get nothing; it takes part with empty tensors.
"""

# N tokens, S documents

from collections.abc import Sequence
from itertools import pairwise

import torch

from herd.core.batch import B, Batch, nearest, part_cuts, slice_batch
from herd.data.loading.batches import Batches, cancel
from herd.model.parallel.mesh import DATA, Mesh, bounds


def chunk_begins(starts: Sequence[int], chunk_size: int) -> list[int]:
    """Where documents and the chunks within them begin, and the end."""
    return [at for begin, end in pairwise(starts) for at in range(begin, end, chunk_size)] + [starts[-1]]


def context_cuts(starts: Sequence[int], chunk_size: int, ranks: int) -> list[int]:
    """Where the pieces begin, two for each rank, the last entry the end."""
    begins, total, pieces = chunk_begins(starts, chunk_size), starts[-1], 2 * ranks
    cuts = []
    for piece in range(pieces + 1):
        target = total * piece / pieces
        at = nearest(begins, target)
        cuts.append(at if abs(at - target) <= total / pieces / 4 else round(target))
    return cuts


def own_pieces(rank: int, ranks: int) -> tuple[int, int]:
    """The numbers of a rank's pieces."""
    return rank, 2 * ranks - 1 - rank


def share(batch: B, mesh: Mesh, chunk_size: int) -> B:
    """This rank's part of a whole batch.

    Where `context` has several ranks, `starts_S` is that of all of them together: the model computes the pieces from
    it.
    """
    starts = batch.starts_S.tolist()
    rank = mesh.index(DATA)
    begin, end = part_cuts(batch.cuts, mesh.count(DATA))[rank : rank + 2]
    starts = [start - begin for start in starts if begin <= start <= end]
    rows = torch.arange(begin, end)
    if mesh.sizes["context"] > 1:
        cuts = context_cuts(starts, chunk_size, mesh.sizes["context"])
        own = own_pieces(mesh.place["context"], mesh.sizes["context"])
        rows = torch.cat([torch.arange(begin + cuts[piece], begin + cuts[piece + 1]) for piece in own])
    weights_N = batch.weights_N[rows]
    if mesh.sizes["tensor"] > 1:
        learnt = torch.nonzero(weights_N)[:, 0]
        edges, place = bounds(len(learnt), mesh.sizes["tensor"]), mesh.place["tensor"]
        mine = learnt[edges[place] : edges[place + 1]]
        weights_N = torch.zeros_like(weights_N).index_copy(0, mine, weights_N[mine])
    return slice_batch(batch, rows, starts, weights_N=weights_N)


class SharedBatches:
    """Batches that every rank makes its own part of: batch s is a function of s, and so is every part."""

    def __init__(self, whole: Batches[Batch], mesh: Mesh, chunk_size: int) -> None:
        self.whole, self.mesh, self.chunk_size = whole, mesh, chunk_size
        self.num_steps, self.unit = whole.num_steps, whole.unit

    def batch(self, step: int) -> Batch:
        return share(self.whole.batch(step), self.mesh, self.chunk_size)

    def cancel(self) -> None:
        cancel(self.whole)
