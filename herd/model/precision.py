"""What depends on the number format: which operator multiplies matrices."""

# R rows, D in, F out, E groups

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herd import native

FEWEST_ROWS = 8
"""Rows of an exact product: the library multiplies fewer by other kernels, which add in another order."""


def batch_invariant(product: Callable[[Tensor], Tensor], x_ND: Tensor, *, fewest: int = FEWEST_ROWS) -> Tensor:
    """`product(x)`, of rows with a matrix. Without gradient, in fp32 on a CPU, a row's sums do not depend on how many
    rows there are: a request's logits are the same to the bit alone, among others, and however its prompt was cut.
    `fewest`: where the library changes its kernel at another number of rows."""
    exact = x_ND.dtype == torch.float32 and x_ND.device.type == "cpu" and not torch.is_grad_enabled()
    if exact and 0 < len(x_ND) < fewest:
        return product(F.pad(x_ND, (0, 0, 0, fewest - len(x_ND))))[: len(x_ND)]
    return product(x_ND)


class Linear(nn.Linear):
    """`nn.Linear` without bias."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        if native.why_not(x_ND, native.TRAINING) is None:
            return native.linear(x_ND, self.weight)
        return batch_invariant(super().forward, x_ND)


class LowBit(nn.Module):
    """In place of a `Linear` (`x`), or of the matrices of all experts (`rows`, `ends_E`); see herd.model.quantize."""

    def __call__(self, x_ND: Tensor, ends_E: Tensor | None = None) -> Tensor:
        return super().__call__(x_ND, ends_E)


def grouped_product(rows_RD: Tensor, weight_EDF: Tensor | LowBit, ends_E: Tensor) -> Tensor:
    """Rows sorted by group times their group's matrix; group e ends before row `ends_E[e]`."""
    if isinstance(weight_EDF, LowBit):
        return weight_EDF(rows_RD, ends_E)
    if native.why_not(rows_RD, native.TRAINING) is None:
        return native.grouped_product(rows_RD, weight_EDF, ends_E)
    if rows_RD.dtype == torch.bfloat16 and hasattr(F, "grouped_mm"):
        return F.grouped_mm(rows_RD, weight_EDF, offs=ends_E)
    # grouped_mm knows bf16 only: one product per group that has rows.
    parts, begin = [], 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > begin:
            parts.append(batch_invariant(partial(torch.mm, mat2=weight_EDF[expert]), rows_RD[begin:end]))
        begin = end
    # Without rows the weights have a gradient of zeros all the same: ranks that sum theirs agree on which there are.
    return torch.cat(parts) if parts else rows_RD @ weight_EDF[0]
