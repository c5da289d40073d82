"""What an optimizer does to one parameter: fp32 masters, moments in fp32 or 8 bits. By C++ kernels, or by PyTorch.

A parameter in bf16 is the upper half of its master: the master's bits are the weight's, shifted by 16, plus the signed
16-bit `low_bits`. So the weight is the master rounded to nearest (ties away from zero), and both take 4 bytes, not 6. A
parameter in fp32 is its own master, without low bits.

Moments in 8 bits (the idea: Dettmers et al., 2110.02861; the code is our own): blocks of 128 numbers share a scale, a
code is a small float of four exponent bits, with a sign and three more bits for the first moment, with four more for
the root of the second. It is rounded up or down at random, so that the mean of many steps is true; the randomness is a
hash of the place in the tensor and of a seed, which whoever calls makes of run, parameter and step.
"""

# B blocks of 128

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from herd import native

BLOCK = 128
LOWEST = 112
"""Exponent of the least code, 2^-15, as fp32 stores it."""
TINY = 1e-30
"""A scale below this counts as zero."""


@dataclass(frozen=True, kw_only=True)
class AdamWStep:
    """One step's numbers: `rate` holds the first moment's correction, `unbias` is the second's; `keep` is 1 - rate *
    decay."""

    clip: float
    betas: tuple[float, float]
    keep: float
    rate: float
    unbias: float

    @property
    def in_order(self) -> tuple[float, ...]:
        return (self.clip, *self.betas, self.keep, self.rate, self.unbias)


def new_low_bits(parameter: Tensor) -> Tensor | None:
    """The low bits of a new master, which equals the parameter; None if that is its own master."""
    return torch.zeros_like(parameter, dtype=torch.int16) if parameter.dtype == torch.bfloat16 else None


def read_master(weight: Tensor, low_bits: Tensor | None) -> Tensor:
    """The fp32 master; without low bits the weight itself."""
    if low_bits is None:
        return weight
    return ((weight.view(torch.int16).int() << 16) + low_bits.int()).view(torch.float32)


def write_master(weight: Tensor, low_bits: Tensor | None, master: Tensor) -> None:
    """Set weight and low bits to the master's two parts."""
    if low_bits is None:
        weight.copy_(master)
        return
    bits = master.view(torch.int32)
    weight.view(torch.int16).copy_((bits + 0x8000) >> 16)
    low_bits.copy_(((bits + 0x8000) & 0xFFFF) - 0x8000)


@torch.no_grad()
def square_sum(x: Tensor) -> Tensor:
    """Sum of squares in fp32."""
    if native.why_not(x) is None:
        return native.square_sum(x)
    return torch.linalg.vector_norm(x, dtype=torch.float32).square()


@torch.no_grad()
def momentum_update(grad: Tensor, first: Tensor, clip: float, momentum: float) -> Tensor:
    """Nesterov: `first` moves to `clip * grad` by 1 - momentum; the update, in grad's precision, is between them."""
    if native.why_not(grad) is None:
        return native.momentum_update(grad, first, clip, momentum)
    grad32 = grad.float() * clip
    first.lerp_(grad32, 1 - momentum)
    return grad32.lerp(first, momentum).to(grad.dtype)


@torch.no_grad()
def apply_update(weight: Tensor, low_bits: Tensor | None, update: Tensor, keep: float, rate: float) -> None:
    """master = keep * master - rate * update."""
    if low_bits is not None and native.why_not(weight) is None:
        native.apply_update(weight, low_bits, update, keep, rate)
        return
    write_master(weight, low_bits, (read_master(weight, low_bits) * keep).add_(update.view_as(weight), alpha=-rate))


@torch.no_grad()
def adamw(
    grad: Tensor,
    weight: Tensor,
    low_bits: Tensor | None,
    first: Tensor,
    second: Tensor,
    scales: Tensor | None,
    numbers: AdamWStep,
    seed: int,
) -> None:
    """A step of AdamW. With `scales` [B, 2] the moments are codes of 8 bits, rounded by `seed` (of 32 bits)."""
    if low_bits is not None and native.why_not(weight) is None:
        if scales is None:
            native.adamw(grad, weight, low_bits, first, second, numbers.in_order)
        else:
            native.adamw_8bit(grad, weight, low_bits, first, second, scales, numbers.in_order, seed)
        return
    mean = first if scales is None else decode(first, scales[:, 0], 3)
    square = second if scales is None else decode(second, scales[:, 1], 4).square_()
    grad32 = grad.float() * numbers.clip
    mean.lerp_(grad32, 1 - numbers.betas[0])
    square.lerp_(grad32.square(), 1 - numbers.betas[1])
    root = (square * numbers.unbias).sqrt_().add_(1e-10)
    master = read_master(weight, low_bits) * numbers.keep
    write_master(weight, low_bits, master.addcdiv_(mean, root, value=-numbers.rate))
    if scales is not None:
        noise_N = noise(mean.numel(), seed, mean.device)
        encode(mean, first, scales[:, 0], 3, noise_N & 0xFFFFF)
        encode(square.sqrt_(), second, scales[:, 1], 4, noise_N >> 13)


def blocks(x: Tensor) -> Tensor:
    """[B, 128] of a tensor of any shape, filled up with zeros."""
    return F.pad(x.flatten(), (0, -x.numel() % BLOCK)).view(-1, BLOCK)


def decode(code: Tensor, scale_B: Tensor, fraction: int) -> Tensor:
    """Numbers of uint8 codes whose small floats have `fraction` bits behind the exponent; with three of them there is
    a sign."""
    whole = blocks(code).int()
    magnitude = whole & ((16 << fraction) - 1)
    x = ((magnitude << (23 - fraction)) + (LOWEST << 23)).view(torch.float32)
    x = torch.where(magnitude > 0, x, 0.0) * scale_B[:, None]
    x = torch.where(whole > magnitude, -x, x)
    return x.flatten()[: code.numel()].view(code.shape)


def encode(x: Tensor, code: Tensor, scale_B: Tensor, fraction: int, noise_N: Tensor) -> None:
    """Set codes and scales to `x`, rounded up where `noise_N` (of 23 - fraction bits) carries."""
    x_BN, most = blocks(x), 2 - 2.0**-fraction
    scale_B.copy_(x_BN.abs().amax(-1) / most)
    over_B1 = torch.where(scale_B > TINY, 1 / scale_B, 0.0)[:, None]
    bits = (x_BN.abs() * over_B1).view(torch.int32) + blocks(noise_N).int()
    signed = fraction == 3
    magnitude = ((bits >> (23 - fraction)) - (LOWEST << fraction)).clamp(int(not signed), (16 << fraction) - 1)
    if signed:
        magnitude = magnitude + 128 * torch.signbit(x_BN)
    code.copy_(magnitude.flatten()[: code.numel()].view(code.shape))


def noise(count: int, seed: int, device: torch.device) -> Tensor:
    """32 random bits of each place, int64: a hash in the manner of MurmurHash3's last steps."""
    h = (torch.arange(count, device=device) * 0x9E3779B1 & 0xFFFFFFFF) ^ seed
    h = (h ^ (h >> 15)) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ (h >> 16)
