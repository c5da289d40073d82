"""Which part of a parameter a rank keeps, how ranks join theirs, and how a checkpoint is given it.

A parameter is split along axes of the mesh one after the other, the outermost first, each along one of its dimensions.
What is fused in one matrix (q, k, v; gate and up) is split part by part, so that each rank has its own heads' q, k
and v. A rank's shard is then several boxes of the whole tensor; torch.distributed.checkpoint is given these boxes under
the parameter's own name, and so any number of ranks may read what another number wrote.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.utils._pytree import tree_map_only

from herd.config import ModelConfig
from herd.model.formats.stored import Box
from herd.model.parallel.mesh import Mesh, bounds


@dataclass(frozen=True, kw_only=True)
class Split:
    """One cut of a tensor: each of `parts`, which follow each other along `dim`, is shared out along `axis`."""

    axis: str
    dim: int
    parts: tuple[int, ...]

    def pieces(self, mesh: Mesh, rank: int) -> list[tuple[int, int]]:
        """Begin and end along `dim` of what `rank` takes, of each part."""
        size, found = mesh.sizes[self.axis], []
        for begin, end in pairwise(accumulate(self.parts, initial=0)):
            if self.axis == "shard":  # as FSDP cuts: equal pieces, the last ones shorter or empty
                step = -(-(end - begin) // size)
                edges = [min(begin + step * part, end) for part in range(size + 1)]
            else:
                edges = [begin + edge for edge in bounds(end - begin, size)]
            found.append((edges[rank], edges[rank + 1]))
        return found

    def lengths(self, mesh: Mesh) -> list[int]:
        """How long each rank's piece is along `dim`."""
        return [sum(end - begin for begin, end in self.pieces(mesh, rank)) for rank in range(mesh.sizes[self.axis])]

    def take(self, x: Tensor, mesh: Mesh) -> Tensor:
        """This rank's piece of `x`."""
        found = [x.narrow(self.dim, begin, end - begin) for begin, end in self.pieces(mesh, mesh.place[self.axis])]
        return found[0] if len(found) == 1 else torch.cat(found, self.dim)

    def join(self, x: Tensor, mesh: Mesh) -> Tensor:
        """The whole, of all ranks' pieces."""
        pieces = mesh.gather(x, self.axis, self.lengths(mesh), self.dim)
        if len(self.parts) == 1:
            return torch.cat(pieces, self.dim)
        shares = [
            piece.split([end - begin for begin, end in self.pieces(mesh, rank)], self.dim)
            for rank, piece in enumerate(pieces)
        ]
        return torch.cat([share[part] for part in range(len(self.parts)) for share in shares], self.dim)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one parameter is laid out on a mesh."""

    mesh: Mesh
    shape: tuple[int, ...]
    """Of the whole."""
    splits: tuple[Split, ...]
    """Outermost first; axes of one rank left out."""
    partial: tuple[str, ...]
    """Axes along which its gradient is still to be summed after a backward."""

    def take(self, whole: Tensor) -> Tensor:
        """This rank's shard."""
        return self._take(whole, self.splits)

    def take_unsharded(self, whole: Tensor) -> Tensor:
        """The same, but for what FSDP does itself."""
        return self._take(whole, [split for split in self.splits if split.axis != "shard"])

    def join(self, shard: Tensor) -> Tensor:
        """The whole, on every rank."""
        return self._join(shard, self.splits)

    def take_matrices(self, matrices: Tensor) -> Tensor:
        """This rank's shard of whole matrices: those of the experts that `join_matrices` gave, or the only one."""
        return self._take(matrices, self._within_matrices)

    def join_matrices(self, shard: Tensor) -> Tensor:
        """Whole matrices: of a stack of them, those of which this rank has a part."""
        return self._join(shard, self._within_matrices)

    @property
    def _within_matrices(self) -> list[Split]:
        return [split for split in self.splits if split.dim >= len(self.shape) - 2]

    def _take(self, x: Tensor, splits: Sequence[Split]) -> Tensor:
        for split in splits:
            x = split.take(x, self.mesh)
        return x

    def _join(self, x: Tensor, splits: Sequence[Split]) -> Tensor:
        for split in reversed(splits):
            x = split.join(x, self.mesh)
        return x

    @property
    def copies(self) -> int:
        """How many ranks have this very shard."""
        return self.mesh.count(tuple(self.mesh.sizes)) // self.mesh.count([split.axis for split in self.splits])

    def boxes(self) -> list[tuple[Box, Box]]:
        """Where this rank's shard is in the whole, and the same boxes within the shard; none is empty."""
        places = [[(0, size)] for size in self.shape]
        for split in self.splits:
            known = places[split.dim]
            pieces = split.pieces(self.mesh, self.mesh.place[split.axis])
            places[split.dim] = [piece for begin, end in pieces for piece in within(known, begin, end)]
        pairs = [list(zip(wholes, ends_of(wholes), strict=True)) for wholes in places]
        return [(tuple(at for at, _ in box), tuple(here for _, here in box)) for box in product(*pairs)]


def within(places: Sequence[tuple[int, int]], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Of places laid end to end, what lies between `begin` and `end`."""
    for (first, _), (here, after) in zip(places, ends_of(places), strict=True):
        low, high = max(here, begin), min(after, end)
        if low < high:
            yield first + low - here, first + high - here


def ends_of(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate((end - begin for begin, end in places), initial=0)))


LORA_EXPERTS = ("lora_gate_up_A", "lora_gate_up_B", "lora_down_A", "lora_down_B")
"""Adapters of the routed experts (see herd.model.lora), ends of their names."""


def layouts(config: ModelConfig, shapes: dict[str, tuple[int, ...]], mesh: Mesh) -> dict[str, Layout]:
    """Of every parameter of a `Transformer` by name."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    table = {}
    for name, shape in shapes.items():
        splits, partial = [], ["expert", "context"]
        if name.endswith(("gate_up_EDF", "down_EFD", *LORA_EXPERTS)):
            splits.append(Split(axis="expert", dim=0, parts=shape[:1]))
            partial.remove("expert")
        if name.startswith("layers."):
            if name.endswith(("qkv.weight", "qkv.lora_B")):
                splits.append(Split(axis="tensor", dim=0, parts=(heads, kv_heads, kv_heads)))
            elif name.endswith(("gate_up.weight", "gate_up.lora_B", "gate_up_EDF", "lora_gate_up_B")):
                dim = len(shape) - 1 if len(shape) == 3 else 0
                splits.append(Split(axis="tensor", dim=dim, parts=(shape[dim] // 2,) * 2))
            elif name.endswith(("out.weight", "out.lora_A", "down.weight", "down.lora_A", "down_EFD", "lora_down_A")):
                splits.append(Split(axis="tensor", dim=1, parts=shape[1:2]))
            elif ".lora_" in name:
                partial.append("tensor")  # each rank has a part of what is computed with it
        if name == "unembedding.weight":
            partial.append("tensor")  # its ranks share out the tokens that are learnt, see herd.model.parallel.pieces
        # FSDP cuts what a rank has after the others, along the first dimension.
        length = shape[0]
        for split in splits:
            if split.dim == 0:
                length = split.lengths(mesh)[mesh.place[split.axis]]
        splits.append(Split(axis="shard", dim=0, parts=(length,)))
        if mesh.sizes["shard"] == 1:
            partial.append("replicate")  # else FSDP does it
        table[name] = Layout(
            mesh=mesh,
            shape=tuple(shape),
            splits=tuple(split for split in splits if mesh.sizes[split.axis] > 1),
            partial=tuple(axis for axis in partial if mesh.sizes[axis] > 1),
        )
    return table


class Shard(Tensor):
    """A rank's part of a tensor, in the form that torch.distributed.checkpoint takes (`_Checkpointable`).

    It can be copied, and copied into; nothing is computed with it.
    """

    local: Tensor
    placement: Layout

    @staticmethod
    def __new__(cls, local: Tensor, layout: Layout) -> "Shard":
        made: Shard = torch.Tensor._make_wrapper_subclass(cls, layout.shape, dtype=local.dtype, device=local.device)
        made.local, made.placement = local, layout
        return made

    def __init__(self, local: Tensor, layout: Layout) -> None:
        pass

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Shard({tuple(self.local.shape)} of {self.placement.shape})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.copy_.default:
            args[0].local.copy_(args[1].local, *args[2:])
            return args[0]
        assert func in {torch.ops.aten.clone.default, torch.ops.aten.detach.default}, f"{func} on a Shard"
        return cls(func(*tree_map_only(cls, lambda x: x.local, args), **(kwargs or {})), args[0].placement)

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=torch.Size(self.placement.shape)),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(
                offsets=torch.Size([begin for begin, _ in box]), sizes=torch.Size([end - begin for begin, end in box])
            )
            for box, _ in self.placement.boxes()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        boxes = self.placement.boxes()
        [here] = [here for box, here in boxes if torch.Size([begin for begin, _ in box]) == index.offset]
        return self.local[tuple(slice(begin, end) for begin, end in here)]
