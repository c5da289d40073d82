"""Samples to batches: tokens laid end to end, targets inside each document, patch tokens tied to their tiles."""

# N tokens, S documents

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from herd.core.batch import KINDS, Batch, Images
from herd.data.media.image import Tiles, normalise


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One document: its ids, which of them are learnt (as targets) or how much each weighs, and its pictures."""

    ids: np.ndarray
    learnt: np.ndarray
    kind: str
    tiles: list[Tiles] = field(default_factory=list)
    weight: float = 1.0
    """What each of its learnt tokens weighs beside those of other samples."""


def pack(samples: Sequence[Sample], *, patch_id: int | None) -> Batch:
    """Lay samples end to end; without a `patch_id` none has pictures. Weights are raw: the loss normalises."""
    lengths = [len(sample.ids) for sample in samples]
    tokens = np.concatenate([sample.ids for sample in samples]).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    targets, weights = np.zeros_like(tokens), np.zeros(len(tokens), dtype=np.float32)
    for sample, start in zip(samples, starts, strict=False):
        end = start + len(sample.ids)
        targets[start : end - 1] = sample.ids[1:]
        weights[start : end - 1] = sample.weight * sample.learnt[1:]
    tiles = [cut.pixels for sample in samples for cut in sample.tiles]
    images = None
    if tiles:
        rows = torch.from_numpy(np.flatnonzero(tokens == patch_id))
        images = Images(tiles=normalise(torch.cat(tiles)), rows=rows)
    return Batch(
        tokens_N=torch.from_numpy(tokens),
        targets_N=torch.from_numpy(targets),
        weights_N=torch.from_numpy(weights),
        positions_N=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        starts_S=torch.from_numpy(starts),
        images=images,
        kinds_N=torch.from_numpy(np.repeat(np.array([KINDS.index(s.kind) for s in samples], dtype=np.int8), lengths)),
    )


def steps_of(lengths: np.ndarray, batch_tokens: int) -> list[range]:
    """Which consecutive samples make each step: about `batch_tokens` tokens, every sample in exactly one step."""
    ends = np.cumsum(lengths)
    step = np.maximum(ends - 1, 0) // batch_tokens
    cuts = np.flatnonzero(np.diff(step)) + 1
    edges = [0, *cuts.tolist(), len(lengths)]
    return [range(begin, end) for begin, end in pairwise(edges)]
