"""What a training step or a prefill computes on: flat tokens of any number of documents, their pictures, and how a
batch is cut.

A batch is cut for micro-batches and for ranks. Cutting slices every field whose name ends in a shape that begins with
N, so a subclass that adds `advantages_N` or `draws_NK` needs no code for it. All other fields go to every part as they
are, among them `total_weight`: what a loss divides by is that of the whole step, however many parts it is cut into.

`to_device` moves a part before it is computed. The fields of HOST stay where they are: from them the host plans which
runs attend within themselves and which rows have a loss, without asking the device.
"""

# N tokens, S documents, R rows of a part

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from herd.core.device import send

PER_TOKEN = re.compile(r"_N[A-Za-z]*$")
"""Names of the fields that have an entry for each token: their first axis is N."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Pictures of one pack: their tiles, and where the tiles' tokens are."""

    tiles: Tensor
    """Normalised pixels [tiles, 3, side, side]; with `encoded`, the features [rows, D] that the encoder gave."""
    rows: Tensor
    """Index in the pack of every patch token, in the order of the tiles."""
    encoded: bool = False
    kept: Tensor | None = None
    """Index of those of the tiles' tokens that are in this pack, where it was cut within a picture; None: all."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One packed batch: a step's, or the part of it that a micro-batch or a rank computes.

    A subclass may add fields: per token (see PER_TOKEN), or of the whole step.
    """

    tokens_N: Tensor
    """int64."""
    targets_N: Tensor
    """int64, the next token inside the same document."""
    weights_N: Tensor
    """float32 loss weight, 0 where nothing is learnt. Raw: they need not sum to 1, the loss normalises."""
    positions_N: Tensor
    """int64, from 0 in each document."""
    starts_S: Tensor
    """int32 cumulative document starts, last entry N."""
    images: Images | None
    kinds_N: Tensor
    """int8, what a token belongs to, for reporting losses apart; see KINDS."""
    total_weight: float | None = None
    """Sum of |weight| over the whole step, all its micro-batches and ranks; by default that of `weights_N`."""

    def __post_init__(self) -> None:
        if self.total_weight is None:  # a batch that was not cut from another
            total = float(self.weights_N.abs().sum(dtype=torch.float64))
            object.__setattr__(self, "total_weight", total)

    @property
    def size(self) -> int:
        """What the rate counts: tokens."""
        return len(self.tokens_N)

    @property
    def cuts(self) -> list[int]:
        """Where it may be cut into parts: between documents."""
        starts: list[int] = self.starts_S.tolist()
        return starts

    @property
    def shares_N(self) -> Tensor:
        """Each token's weight as a share of the whole step's."""
        assert self.total_weight is not None
        return self.weights_N / max(self.total_weight, 1e-6)


KINDS = ("text", "picture", "chat", "planted", "video")
"""Names of the values of `Batch.kinds_N`."""
HOST = {"positions_N", "starts_S", "weights_N", "kinds_N", "prompts_N"}
"""Fields that stay on the host."""
B = TypeVar("B", bound=Batch)
T = TypeVar("T")


def to_device(batch: T, device: torch.device) -> T:
    """A batch of any kind, a dataclass, with its tensors on `device` but for those of HOST; itself on a CPU."""
    if device.type == "cpu":
        return batch
    assert is_dataclass(batch) and not isinstance(batch, type)
    sent: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor) and field.name not in HOST:
            sent[field.name] = send(value, device)
        elif is_dataclass(value):
            sent[field.name] = to_device(value, device)
    return replace(batch, **sent)


def slice_batch(batch: B, rows_R: Tensor, starts: Sequence[int], **changes: Any) -> B:
    """The tokens at `rows_R` of a batch, with documents that begin at `starts`; `changes` replace other fields."""
    sliced = {
        field.name: value[rows_R]
        for field in fields(batch)
        if PER_TOKEN.search(field.name) and (value := getattr(batch, field.name)) is not None
    }
    images = None if batch.images is None else slice_images(batch.images, rows_R, len(batch.tokens_N))
    starts_S = torch.tensor(starts, dtype=batch.starts_S.dtype)
    return replace(batch, **{**sliced, "starts_S": starts_S, "images": images, **changes})


def slice_images(images: Images, rows_R: Tensor, num_tokens: int) -> Images:
    """The tiles of which a token is among `rows_R`. Without any it is empty: every rank then runs the encoder, or none
    does."""
    place_N = torch.full((num_tokens,), -1).index_copy(0, rows_R, torch.arange(len(rows_R)))
    place = place_N[images.rows]
    kept = torch.nonzero(place >= 0)[:, 0]
    each = len(images.rows) // max(len(images.tiles), 1)
    tiles, tile_of = torch.unique(kept // max(each, 1), return_inverse=True)
    within = tile_of * each + kept % max(each, 1)
    partly = len(within) < len(tiles) * each
    return replace(images, tiles=images.tiles[tiles], rows=place[kept], kept=within if partly else None)


def split_batch(batch: B, count: int) -> list[B]:
    """A batch as `count` micro-batches of about as many tokens, cut where it may be; some may be empty. Their losses
    and gradients add up to the batch's."""
    if count == 1:  # also of a context rank, whose starts are not its own alone
        return [batch]
    starts = batch.starts_S.tolist()
    parts = []
    for begin, end in pairwise(part_cuts(batch.cuts, count)):
        inner = [start - begin for start in starts if begin <= start <= end]
        parts.append(slice_batch(batch, torch.arange(begin, end), inner))
    return parts


def part_cuts(cuts: Sequence[int], parts: int) -> list[int]:
    """Where each part begins on the token axis, of the places where a batch may be cut, the last entry its end."""
    return [nearest(cuts, cuts[-1] * part / parts) for part in range(parts + 1)]


def nearest(places: Sequence[int], target: float) -> int:
    """Of ascending places, the one next to `target`, the earlier of two."""
    after = bisect_left(places, target)
    return min(places[max(after - 1, 0) : after + 1], key=lambda place: abs(place - target))
