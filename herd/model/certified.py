"""Sparse attention of one new token, with a bound on its error.

A global layer has no positions, so its keys may be stored in any order: `ArrangedKeys` is a copy in which the keys of a
page are similar. It splits the keys at the median of the channel in which they differ most, and the halves again, down
to pages of `LEAF` keys, and keeps the least and the greatest value of each channel of a page. No key of the page can
score more with a query q than b = sum_c max(q_c low_c, q_c high_c). Pages are read in the order of that bound until the
mass of the others, at most sum_p L exp(b_p), is provably no more than the share epsilon of all. With d the share that
is skipped, o the output over what was read and v the values, |exact - o| <= d (|o| + max |v|): the answer comes with
this number. Each key head selects its own pages. Where bounds are loose everything is read, and the answer is exact.

Bounds: Quest (Tang et al., arXiv 2406.10774) ranks pages by them and reads a fixed number; here they are a proof.
"""

# H query heads, C head width, P pages, K key heads, L tokens of a page, B pages that are read, N keys, R query heads
# that share a key head

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd import native

LEAF = 32
"""Keys of an arranged page."""
FIRST_PAGES = 16
"""Pages of each head that are read to learn the mass that the unread is compared with."""
AT_ONCE = 8192
"""Pages whose values are in fp32 at a time."""
ROUNDING = 1e-5
"""What a bound is raised by for sums in fp32, as a share of the sum of absolute products: C * 2^-24, and to spare."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is known of one token's answer."""

    share: float
    """Of the keys, how many were read, on average over the key heads."""
    unread: float
    """Greatest share of a head's mass that may be in unread pages."""
    error: float
    """Greatest distance of a head's output from the exact one."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What one key head has, arranged."""

    keys_PKLC: Tensor
    """K is 1 in all of these, as the kernels want it."""
    values_PKLC: Tensor
    low_PKC: Tensor
    high_PKC: Tensor
    widest_C: Tensor
    """The greatest absolute value of each channel of the keys."""
    longest_P: Tensor
    """The greatest norm of a page's values."""


class ArrangedKeys:
    """A copy of a layer's keys and values, of the first `length` as far as they fill pages, like beside like."""

    def __init__(self, keys_PKLC: Tensor, values_PKLC: Tensor, length: int) -> None:
        unit = math.lcm(keys_PKLC.shape[2], LEAF)
        self.keys, self.values, self.length = keys_PKLC, values_PKLC, length // unit * unit
        self.heads: list[Head] = []
        for head in range(keys_PKLC.shape[1]):
            keys_NC, values_NC = (pool[:, head].flatten(0, 1)[: self.length] for pool in (keys_PKLC, values_PKLC))
            order_N = arrange(keys_NC)
            keys, values = (pool[order_N].unflatten(0, (-1, 1, LEAF)) for pool in (keys_NC, values_NC))
            del keys_NC, values_NC  # two of these beside two arranged ones are much at ten million keys
            low, high = torch.aminmax(keys, dim=2)
            norms = [torch.linalg.vector_norm(part.float(), dim=-1).amax((1, 2)) for part in values.split(AT_ONCE)]
            self.heads.append(
                Head(
                    keys_PKLC=keys, values_PKLC=values, low_PKC=low, high_PKC=high,
                    widest_C=torch.maximum(low.abs().amax((0, 1)), high.abs().amax((0, 1))).float(),
                    longest_P=torch.cat(norms),
                )
            )  # fmt: skip


def arrange(keys_NC: Float[Tensor, "n c"]) -> Int[Tensor, "n"]:
    """An order in which every LEAF keys are alike."""
    if native.why_not(keys_NC, native.SPARSE) is None:
        return native.arrange(keys_NC.contiguous(), LEAF)

    def halve(rows_N: Tensor) -> list[Tensor]:
        if len(rows_N) <= LEAF:
            return [rows_N]
        part_NC = keys_NC[rows_N].float()
        order_N = part_NC[:, int(part_NC.var(0).argmax())].argsort(stable=True)
        half = (len(rows_N) // LEAF + 1) // 2 * LEAF
        return [*halve(rows_N[order_N[:half]]), *halve(rows_N[order_N[half:]])]

    return torch.cat(halve(torch.arange(len(keys_NC), device=keys_NC.device)))


def page_bounds(
    q_HC: Float[Tensor, "h c"], low_PKC: Float[Tensor, "p k c"], high_PKC: Float[Tensor, "p k c"]
) -> Float[Tensor, "h p"]:
    """The most that a key of each page can score, before rounding."""
    if native.why_not(low_PKC, native.SPARSE) is None:
        return native.page_bounds(q_HC, low_PKC, high_PKC)
    q_KRC = q_HC.unflatten(0, (low_PKC.shape[1], -1))
    up, down = q_KRC.clamp(min=0), q_KRC.clamp(max=0)
    bound_KRP = torch.einsum("krc,pkc->krp", up, high_PKC.float()) + torch.einsum("krc,pkc->krp", down, low_PKC.float())
    return bound_KRP.flatten(0, 1)


def attend_selected(
    q_HC: Float[Tensor, "h c"],
    keys_PKLC: Float[Tensor, "p k l c"],
    values_PKLC: Float[Tensor, "p k l c"],
    pages_B: Int[Tensor, "b"],
    last: int,
) -> tuple[Float[Tensor, "h c"], Float[Tensor, "h"]]:
    """softmax(q . k) v over the pages `pages_B`, of the last of which `last` keys count; and log sum exp(q . k)."""
    if native.why_not(keys_PKLC, native.SPARSE) is None:
        return native.attend_selected(q_HC, keys_PKLC, values_PKLC, pages_B, last)
    q_KRC = q_HC.unflatten(0, (keys_PKLC.shape[1], -1))
    k, v = (pool[pages_B].float().transpose(0, 1).flatten(1, 2) for pool in (keys_PKLC, values_PKLC))
    count = k.shape[1] - keys_PKLC.shape[2] + last
    score = q_KRC @ k[:, :count].mT
    return (torch.softmax(score, -1) @ v[:, :count]).flatten(0, 1), torch.logsumexp(score, -1).flatten()


def select_pages(bound_P: Float[Tensor, "p"], allowed: float) -> Tensor:
    """Which pages must be read so that log of the most mass that the others have is no more than `allowed`."""
    worth_P = bound_P.double() + math.log(LEAF)
    chosen_P = worth_P > allowed - math.log(len(worth_P))  # all the others together do not come to `allowed`
    rows_B = torch.nonzero(chosen_P)[:, 0]
    sorted_B, order_B = worth_P[rows_B].sort()
    rest = torch.logsumexp(torch.where(chosen_P, -math.inf, worth_P), 0)
    unread_B = torch.logaddexp(torch.logcumsumexp(sorted_B, 0), rest)
    chosen_P[rows_B[order_B[: int(torch.searchsorted(unread_B, allowed, right=True))]]] = False
    return chosen_P


def merge_attention(out_HC: Tensor, mass_H: Tensor, more_HC: Tensor, more_H: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from that over each."""
    all_H = torch.logaddexp(mass_H, more_H)
    return out_HC * (mass_H - all_H).exp()[:, None] + more_HC * (more_H - all_H).exp()[:, None], all_H


def attend(
    q_HC: Float[Tensor, "h c"], arranged: ArrangedKeys, length: int, epsilon: float
) -> tuple[Float[Tensor, "h c"], Certificate]:
    """Attention of one token to the first `length` keys, leaving out at most the share `epsilon` of their mass.

    Those past the arranged ones are all read. `q_HC` carries its temperature; it is scaled by 1 / sqrt(C) here.
    fp32 out.
    """
    size, width = arranged.keys.shape[2], q_HC.shape[-1]
    q_HC = q_HC.float() * width**-0.5
    recent = torch.arange(arranged.length // size, -(-length // size), device=q_HC.device)
    recent_HC, recent_H = torch.zeros_like(q_HC), q_HC.new_full((len(q_HC),), -math.inf)
    if len(recent):
        recent_HC, recent_H = attend_selected(q_HC, arranged.keys, arranged.values, recent, (length - 1) % size + 1)
    ratio, outs, num_read, unread, error = len(q_HC) // len(arranged.heads), [], 0, 0.0, 0.0
    for index, head in enumerate(arranged.heads):
        rows = slice(index * ratio, (index + 1) * ratio)
        q_RC, late = q_HC[rows], (recent_HC[rows], recent_H[rows])
        slack_R = ROUNDING * (q_RC.abs() * head.widest_C).sum(-1)
        bound_RP = page_bounds(q_RC, head.low_PKC, head.high_PKC) + slack_R[:, None]
        pages = bound_RP.shape[1]
        chosen_P = torch.zeros(pages, dtype=torch.bool, device=q_HC.device)
        chosen_P[torch.topk(bound_RP, min(FIRST_PAGES, pages)).indices.flatten()] = True

        def read(chosen_P: Tensor, q_RC: Tensor = q_RC, head: Head = head) -> tuple[Tensor, Tensor]:
            pages_B = torch.nonzero(chosen_P)[:, 0]
            return attend_selected(q_RC, head.keys_PKLC, head.values_PKLC, pages_B, LEAF)

        # Unread U beside read Z: U / (Z + U) <= epsilon where U <= epsilon Z / (1 - epsilon). Z only grows from here.
        allowed_R = torch.logaddexp(read(chosen_P)[1], late[1]).double() + math.log(epsilon / (1 - epsilon))
        for bound_P, allowed in zip(bound_RP, allowed_R.tolist(), strict=True):
            chosen_P |= select_pages(bound_P, allowed)
        out_RC, mass_R = merge_attention(*read(chosen_P), *late)
        outs.append(out_RC)
        num_read += int(chosen_P.sum())
        if not chosen_P.all():
            left_R = torch.logsumexp(bound_RP[:, ~chosen_P].double() + math.log(LEAF), -1)
            share_R = torch.sigmoid(left_R - mass_R.double())
            most_R = torch.linalg.vector_norm(out_RC, dim=-1) + head.longest_P[~chosen_P].amax()
            unread, error = max(unread, float(share_R.max())), max(error, float((share_R * most_R).max()))
    late_keys = length - arranged.length
    share = (num_read * LEAF / len(arranged.heads) + late_keys) / length
    return torch.cat(outs), Certificate(share=share, unread=unread, error=error)
