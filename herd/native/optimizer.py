"""The optimizer's kernels; their twins and what they compute are in herd.train.passes."""

import torch
from torch import Tensor

from herd.native.library import call

PART = 4096
"""Numbers whose squares are summed by one thread, as in optimizer.cpp."""


def square_sum(x: Tensor) -> Tensor:
    """Sum of squares, fp32, without axes."""
    sums = torch.empty(-(-x.numel() // PART))
    call("squares", x.contiguous(), sums, x.numel())
    return sums.sum()


def momentum_update(grad: Tensor, first: Tensor, clip: float, momentum: float) -> Tensor:
    update, grad = torch.empty_like(grad, memory_format=torch.contiguous_format), grad.contiguous()
    call("momentum_update", grad, first, update, grad.numel(), float(clip), float(momentum))
    return update


def apply_update(weight: Tensor, low_bits: Tensor, update: Tensor, keep: float, rate: float) -> None:
    call("apply_update", update.contiguous(), weight, low_bits, weight.numel(), float(keep), float(rate))


def adamw(
    grad: Tensor, weight: Tensor, low_bits: Tensor, first: Tensor, second: Tensor, numbers: tuple[float, ...]
) -> None:
    call("adamw", grad.contiguous(), weight, low_bits, first, second, weight.numel(), *map(float, numbers))


def adamw_8bit(
    grad: Tensor,
    weight: Tensor,
    low_bits: Tensor,
    first: Tensor,
    second: Tensor,
    scales: Tensor,
    numbers: tuple[float, ...],
    seed: int,
) -> None:
    count = weight.numel()
    call("adamw_8bit", grad.contiguous(), weight, low_bits, first, second, scales, count, *map(float, numbers), seed)
