"""Texts to windows of words, windows to the tensors of a batch."""

# B windows, L words of a window, U different words, G features of a word

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from herd.guard.prompt_guard.words import features


def windows(words: Sequence[str], window: int, stride: int) -> list[tuple[str, ...]]:
    """All words, in windows that begin `stride` apart; the last one ends with the text."""
    if len(words) <= window:
        return [tuple(words)] if words else []
    begins = [*range(0, len(words) - window, stride), len(words) - window]
    return [tuple(words[begin : begin + window]) for begin in begins]


def like_lengths(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of like lengths together, the longest first, so many that with their padding they have `most` at most."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        number = max(1, most // lengths[order[-1]])
        batch, order = order[-number:], order[:-number]
        yield batch


def tensors(batch: Sequence[Sequence[str]], buckets: int) -> tuple[Tensor, Tensor]:
    """(features_UG, index_BL) of windows, row 0 being padding."""
    rows: dict[str, int] = {}
    index_BL = np.zeros((len(batch), max(map(len, batch), default=1)), np.int64)
    for row, words in enumerate(batch):
        index_BL[row, : len(words)] = [rows.setdefault(word, len(rows) + 1) for word in words]
    sets = [features(word, buckets) for word in rows]
    features_UG = np.zeros((len(sets) + 1, max(map(len, sets), default=1)), np.int64)
    for row, one in enumerate(sets, 1):
        features_UG[row, : len(one)] = one
    return torch.from_numpy(features_UG), torch.from_numpy(index_BL)
