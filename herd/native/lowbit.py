"""Products with packed 8- and 4-bit weights: the kernel's call. Its PyTorch twin is in herd.model.quantize."""

# R rows sorted by group, E groups (experts), K in, N out

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd.native.library import call


def lowbit_product(
    rows_RK: Float[Tensor, "r k"],
    weight: Tensor,
    scale: Tensor,
    ends_E: Int[Tensor, "e"],
    *,
    bits: int,
    detail: int,
) -> Float[Tensor, "r n"]:
    """Rows times their group's matrix, group e ending before row `ends_E[e]`; the result in the rows' dtype.

    `weight` is [E, N, K] of one byte each, or with `bits=4` two columns a byte, the low half the even one and 8 above
    its meaning; `scale` is bf16, [E, N, scales of a row]. `detail`: 0 for int8, the group for int4, the cap of
    the activations for fp8.
    """
    rows_RK = rows_RK.contiguous()
    num_groups, num_out = weight.shape[:2]
    out = rows_RK.new_empty(len(rows_RK), num_out)
    narrow = int(rows_RK.dtype == torch.bfloat16)
    sizes = (num_groups, rows_RK.shape[1], num_out, bits, detail)
    call("lowbit_product", rows_RK, narrow, weight, scale, out, ends_E, *sizes)
    return out
