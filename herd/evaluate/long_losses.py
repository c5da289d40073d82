"""Losses of the suite for long texts: by position within the length of training, and after longer and longer texts."""

# N tokens, D width, V vocabulary

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from herd.engine.model import LoadedModel
from herd.engine.reader import Reader
from herd.model.pack import pack_sequences


@torch.inference_mode()
def loss_by_position(model: LoadedModel, ids: np.ndarray, length: int, documents: int = 8) -> list[dict[str, float]]:
    """Mean loss in nats between powers of two of the position, over documents of `length` tokens."""
    losses = []
    for index in range(min(documents, len(ids) // length)):
        tokens_N = torch.from_numpy(ids[index * length : (index + 1) * length]).long()
        pack = pack_sequences([tokens_N], device=model.device)
        hidden_ND = model.transformer.forward_packed(pack)
        logits_NV = model.transformer.unembed(hidden_ND[:-1]).float()
        losses.append(F.cross_entropy(logits_NV, pack.tokens_N[1:], reduction="none"))
    mean_N = torch.stack(losses).mean(0)
    edges = [0, *(2**power for power in range(6, 30) if 2**power < length), length]
    return [
        {"from": begin, "to": end, "loss": round(float(mean_N[begin:end].mean()), 4)} for begin, end in pairwise(edges)
    ]


def loss_after(reader: Reader, passages: np.ndarray, lengths: Sequence[int]) -> list[dict[str, float]]:
    """Mean loss in nats of the same passages [_, chunk] after the first tokens of what was read."""
    rows = []
    for length in (0, *lengths):
        with reader.preserve_pages([length // reader.chunk]):
            losses = [reader.losses(one[:1].tolist(), one[1:].tolist(), at=length) for one in passages]
        rows.append({"after": length, "loss": round(float(np.mean(losses)), 4)})
    return rows
