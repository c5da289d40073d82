"""Attention over pages: the kernel's call. Its PyTorch twin is `attend_pages` in herd.model.cache."""

# N tokens, S sequences, B pages of a sequence, H query heads, C head width, P pages, K key heads, L tokens of a page

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd.native.library import Inputs, call

PAGES = Inputs(dtypes=(torch.bfloat16, torch.float32), multiple=2)
"""Queries that the kernel takes."""


def attend_pages(
    q_NHC: Float[Tensor, "n h c"],
    keys_PKLC: Float[Tensor, "p k l c"],
    values_PKLC: Float[Tensor, "p k l c"],
    table_SB: Int[Tensor, "s b"],
    seen_S: Int[Tensor, "s"],
    starts_S: Int[Tensor, "s1"],
) -> Float[Tensor, "n h c"]:
    """Row n of sequence s sees the positions 0 … seen_S[s] + (n - starts_S[s]) of the span in the pages of table_SB[s].

    A row's result depends on what it sees alone: neither on the other rows nor on the number of threads.
    """
    q_NHC = q_NHC.contiguous()
    out_NHC = torch.empty_like(q_NHC)
    sizes = (*table_SB.shape, keys_PKLC.shape[2], q_NHC.shape[1], keys_PKLC.shape[1], q_NHC.shape[2])
    table_SB, seen_S, starts_S = table_SB.contiguous(), seen_S.long(), starts_S.int()
    narrow = int(q_NHC.dtype == torch.bfloat16)
    call("attend_pages", q_NHC, keys_PKLC, values_PKLC, table_SB, seen_S, starts_S, out_NHC, *sizes, narrow)
    return out_NHC
