"""Keys and values of running requests, in slots.

A local layer keeps one chunk per slot and overwrites it as the request enters the next: the chunk edge is where its
past ends anyway. A global layer keeps every position up to `capacity`.
"""

# B slots, S sequences of this forward, Q queries, K key heads, L keys, C head width

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.config import ModelConfig


class KVCache:
    """`num_slots` requests of at most `capacity` tokens each."""

    def __init__(
        self, config: ModelConfig, *, num_slots: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config, self.num_slots, self.capacity = config, num_slots, capacity
        self.keys, self.values = (
            [
                torch.zeros(
                    num_slots,
                    capacity if config.is_global(layer) else min(capacity, config.chunk_size),
                    config.num_kv_heads,
                    config.head_dim,
                    dtype=dtype,
                    device=device,
                )
                for layer in range(config.num_layers)
            ]
            for _ in range(2)
        )

    def copy_slot(self, source: int) -> None:
        """Give every slot the past of slot `source`."""
        for tensor in (*self.keys, *self.values):
            tensor.copy_(tensor[source].clone())

    def at(self, slots: list[int], positions_N: Tensor, starts_S: Tensor) -> "CacheView":
        """The view for one forward: sequence s of the pack continues the request in slot `slots[s]`.

        Within a forward each sequence must stay inside one chunk; `chunk_pieces` cuts a prompt so.
        """
        begins, ends = starts_S[:-1].long(), starts_S[1:].long()
        lengths = ends - begins
        step_Q = torch.arange(int(lengths.max()), device=positions_N.device)
        # Slots past a sequence's end repeat its last token; what they compute is dropped.
        rows_SQ = torch.minimum(begins[:, None] + step_Q, ends[:, None] - 1)
        return CacheView(
            cache=self,
            slot_N=torch.repeat_interleave(torch.tensor(slots, device=positions_N.device), lengths),
            slots_S=torch.tensor(slots, device=positions_N.device),
            positions_N=positions_N,
            positions_SQ=positions_N[rows_SQ],
            rows_SQ=rows_SQ,
            real_SQ=step_Q < lengths[:, None],
        )


def chunk_pieces(begin: int, end: int, chunk_size: int, longest: int) -> list[tuple[int, int]]:
    """Cut positions [begin, end) into pieces of at most `longest` that no chunk edge divides."""
    pieces = []
    while begin < end:
        stop = min(end, begin + longest, (begin // chunk_size + 1) * chunk_size)
        pieces.append((begin, stop))
        begin = stop
    return pieces


@dataclass(frozen=True, kw_only=True)
class CacheView:
    """Who reads and writes where, for one forward."""

    cache: KVCache
    slot_N: Tensor
    slots_S: Tensor
    positions_N: Tensor
    positions_SQ: Tensor
    rows_SQ: Tensor
    real_SQ: Tensor

    def attend(self, layer: int, q_NHC: Tensor, k_NKC: Tensor, v_NKC: Tensor) -> Tensor:
        """Store the new keys and values, then attend to everything that the layer may see."""
        config = self.cache.config
        chunk = None if config.is_global(layer) else config.chunk_size
        write_N = self.positions_N if chunk is None else self.positions_N % chunk
        read_SQ = self.positions_SQ if chunk is None else self.positions_SQ % chunk
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.slot_N, write_N] = k_NKC
        values[self.slot_N, write_N] = v_NKC
        length = int(read_SQ.max()) + 1
        k = keys[self.slots_S, :length].transpose(1, 2)
        v = values[self.slots_S, :length].transpose(1, 2)
        q = q_NHC[self.rows_SQ].transpose(1, 2)
        visible_SQL = torch.arange(length, device=q.device) <= read_SQ[:, :, None]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible_SQL[:, None], enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2)[self.real_SQ]
