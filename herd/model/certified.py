"""Sparse attention of one new token that says how wrong it can be.

Of every page of keys the least and the greatest value of each channel are kept. No key of the page can score more with
a query q than b = sum_c max(q_c low_c, q_c high_c). Pages are read in the order of that bound until the others'
mass, at most sum_p L exp(b_p), is provably no more than the share epsilon of all. With d the share that is left unread,
o what was read and v the values, |exact - o| <= d (|o| + max |v|): the answer comes with this number. Where bounds are
loose everything is read, and the answer is exact.

Bounds: Quest (Tang et al., arXiv 2406.10774) ranks pages by them and reads a fixed number; here they are a proof.
"""

# H query heads, C head width, P pages, K key heads, L tokens of a page, B pages that are read

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd import native

FIRST_PAGES = 16
"""Pages of each head that are read to learn the mass that the unread is compared with."""
ROUNDING = 1e-5
"""What a bound is raised by for sums in fp32, as a share of the sum of absolute products: C * 2^-24, and to spare."""
BATCH_PAGES = 4096
"""Pages that are summarised at a time."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is known of one head's answer."""

    share: float
    """Of the pages, how many were read, by any head."""
    unread: float
    """Greatest share of a head's mass that may lie in unread pages."""
    error: float
    """Greatest distance of a head's output from the exact one."""


class Summary:
    """Least and greatest keys, and the longest value, of each page of a layer."""

    def __init__(self, keys_PKLC: Tensor, values_PKLC: Tensor) -> None:
        self.keys, self.values = keys_PKLC, values_PKLC
        pages, kv_heads, _, width = keys_PKLC.shape
        self.low_PKC, self.high_PKC = (keys_PKLC.new_empty(pages, kv_heads, width) for _ in range(2))
        self.longest_PK = torch.empty(pages, kv_heads, device=keys_PKLC.device)

    def update(self, begin: int, end: int) -> None:
        """Look at the pages [begin, end) again; all of them must be full."""
        for at in range(begin, end, BATCH_PAGES):
            rows = slice(at, min(at + BATCH_PAGES, end))
            self.low_PKC[rows], self.high_PKC[rows] = torch.aminmax(self.keys[rows], dim=2)
            self.longest_PK[rows] = torch.linalg.vector_norm(self.values[rows].float(), dim=-1).amax(-1)


def page_bounds(
    q_HC: Float[Tensor, "h c"], low_PKC: Float[Tensor, "p k c"], high_PKC: Float[Tensor, "p k c"]
) -> Float[Tensor, "h p"]:
    """The most that a key of each page can score, before rounding."""
    if native.reads_some(low_PKC[:, :, None]):
        return native.page_bounds(q_HC, low_PKC, high_PKC)
    q_KRC = q_HC.unflatten(0, (low_PKC.shape[1], -1))
    up, down = q_KRC.clamp(min=0), q_KRC.clamp(max=0)
    bound_KRP = torch.einsum("krc,pkc->krp", up, high_PKC.float()) + torch.einsum("krc,pkc->krp", down, low_PKC.float())
    return bound_KRP.flatten(0, 1)


def attend_some(
    q_HC: Float[Tensor, "h c"],
    keys_PKLC: Float[Tensor, "p k l c"],
    values_PKLC: Float[Tensor, "p k l c"],
    pages_B: Int[Tensor, "b"],
    last: int,
) -> tuple[Float[Tensor, "h c"], Float[Tensor, "h"]]:
    """softmax(q . k) v over the pages `pages_B`, of the last of which `last` keys count; and log sum exp(q . k)."""
    if native.reads_some(keys_PKLC):
        return native.attend_some(q_HC, keys_PKLC, values_PKLC, pages_B, last)
    q_KRC = q_HC.unflatten(0, (keys_PKLC.shape[1], -1))
    k, v = (pool[pages_B].float().transpose(0, 1).flatten(1, 2) for pool in (keys_PKLC, values_PKLC))
    count = k.shape[1] - keys_PKLC.shape[2] + last
    score = q_KRC @ k[:, :count].mT
    return (torch.softmax(score, -1) @ v[:, :count]).flatten(0, 1), torch.logsumexp(score, -1).flatten()


def attend(
    q_HC: Float[Tensor, "h c"], summary: Summary, length: int, epsilon: float
) -> tuple[Float[Tensor, "h c"], Certificate]:
    """Attention of one token to the first `length` keys, of whose mass at most `epsilon` is left out.

    `q_HC` carries its temperature; it is scaled by 1 / sqrt(C) here. fp32 out.
    """
    size, width = summary.keys.shape[2], q_HC.shape[-1]
    q_HC = q_HC.float() * width**-0.5
    full = length // size
    tail = torch.arange(full, -(-length // size))  # the page that is not yet full is always read
    if full <= 2 * FIRST_PAGES:
        everything = torch.arange(-(-length // size))
        out_HC, _ = attend_some(q_HC, summary.keys, summary.values, everything, length - (len(everything) - 1) * size)
        return out_HC, Certificate(share=1.0, unread=0.0, error=0.0)
    low_PKC, high_PKC = summary.low_PKC[:full], summary.high_PKC[:full]
    widest_KC = torch.maximum(low_PKC.abs().amax(0), high_PKC.abs().amax(0)).float()
    slack_H = ROUNDING * (q_HC.abs() * widest_KC.repeat_interleave(len(q_HC) // len(widest_KC), 0)).sum(-1)
    bound_HP = page_bounds(q_HC, low_PKC, high_PKC) + slack_H[:, None]

    def read(pages_B: Tensor) -> tuple[Tensor, Tensor]:
        last = length - full * size if len(tail) else size
        return attend_some(q_HC, summary.keys, summary.values, torch.cat([pages_B, tail]), last)

    first = torch.zeros(full, dtype=torch.bool)
    first[bound_HP.topk(FIRST_PAGES, dim=-1).indices.flatten()] = True
    _, mass_H = read(torch.nonzero(first)[:, 0])
    # Unread U beside read Z: U / (Z + U) <= epsilon where U <= epsilon Z / (1 - epsilon). Z only grows from here.
    allowed_H = mass_H.double() + math.log(epsilon / (1 - epsilon))
    sorted_HP, order_HP = bound_HP.double().sort(dim=-1)
    unread_HP = torch.logcumsumexp(sorted_HP + math.log(size), dim=-1)  # of the pages of least bound
    chosen = first
    for unread_P, order_P, allowed in zip(unread_HP, order_HP, allowed_H, strict=True):
        chosen[order_P[int(torch.searchsorted(unread_P, allowed, right=True)) :]] = True
    pages_B = torch.nonzero(chosen)[:, 0]
    out_HC, mass_H = read(pages_B)
    left = ~chosen
    if not left.any():
        return out_HC, Certificate(share=1.0, unread=0.0, error=0.0)
    left_H = torch.logsumexp(bound_HP[:, left].double() + math.log(size), -1)
    share_H = torch.sigmoid(left_H - mass_H.double())
    longest_K = summary.longest_PK[:full][left].amax(0)
    longest_H = longest_K.repeat_interleave(len(q_HC) // len(longest_K))
    error_H = share_H * (torch.linalg.vector_norm(out_HC, dim=-1) + longest_H)
    certificate = Certificate(
        share=(len(pages_B) + len(tail)) / (full + len(tail)), unread=float(share_H.max()), error=float(error_H.max())
    )
    return out_HC, certificate
