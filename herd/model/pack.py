"""Sequences as the inputs of one forward: the one place where token ids become tokens, positions and starts.

A sequence is the ids that a forward reads and the number of tokens before them, which are in its cache. They are put
end to end; positions go on from what is cached. Tokens are on the model's device, the rest on the host.
`Transformer.forward_packed` and `FusedForward` compute a pack, `KVCache.view` gives it its pages. Left out: training,
whose packs carry targets and weights (herd.data.loading.pack).
"""

# N tokens of the pack, S sequences

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from herd.core.device import send

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Inputs of one forward over sequences."""

    tokens_N: Tensor
    """int64."""
    positions_N: Tensor
    """int64, each token's place in its sequence, from 0."""
    starts_S: Tensor
    """int32, where each sequence begins in the pack; the last entry is N."""
    lengths: tuple[int, ...]
    """Tokens of each sequence in this pack."""

    @property
    def last_S(self) -> Tensor:
        """int64, the row of each sequence's last token; on the device."""
        return send(self.starts_S[1:].long() - 1, self.tokens_N.device)


def pack_sequences(
    sequences: Sequence[Sequence[int] | Tensor],
    *,
    num_cached: Sequence[int] | None = None,
    device: torch.device = CPU,
) -> Pack:
    """Put sequences end to end, of each the ids behind its first `num_cached` tokens (0 if not given)."""
    lengths = tuple(map(len, sequences))
    cached = [0] * len(lengths) if num_cached is None else num_cached
    if any(isinstance(ids, Tensor) for ids in sequences):
        tokens_N = torch.cat([torch.as_tensor(ids) for ids in sequences])
    else:
        tokens_N = torch.tensor([token for ids in sequences for token in ids], dtype=torch.int64)
    if set(lengths) == {1}:  # a step of decoding, of which there are thousands a second
        positions_N = torch.tensor(cached, dtype=torch.int64)
    else:
        spans = [np.arange(begin, begin + length) for begin, length in zip(cached, lengths, strict=True)]
        positions_N = torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *spans]))
    return Pack(
        tokens_N=send(tokens_N, device),
        positions_N=positions_N,
        starts_S=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        lengths=lengths,
    )
