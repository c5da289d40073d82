"""Bounds of pages, and attention over some of them: calls of the kernels, whose twins are in herd.model.certified."""

# H query heads, C head width, P pages, K key heads, L tokens of a page, B pages that are read, N keys

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd.native.library import Inputs, call

SPARSE = Inputs(multiple=16)
"""Keys that the kernels take."""


def arrange(keys_NC: Float[Tensor, "n c"], leaf: int) -> Int[Tensor, "n"]:
    """An order in which every `leaf` keys are alike; `leaf` divides their number."""
    order_N = torch.empty(len(keys_NC), dtype=torch.int64)
    call("arrange", keys_NC, *keys_NC.shape, leaf, order_N)
    return order_N


def page_bounds(
    q_HC: Float[Tensor, "h c"], low_PKC: Float[Tensor, "p k c"], high_PKC: Float[Tensor, "p k c"]
) -> Float[Tensor, "h p"]:
    """The most that a key of each page can score."""
    (pages, kv, width), heads = low_PKC.shape, len(q_HC)
    out_HP = torch.empty(heads, pages)
    call("page_bounds", q_HC.contiguous(), low_PKC, high_PKC, out_HP, pages, heads, kv, width)
    return out_HP


def attend_selected(
    q_HC: Float[Tensor, "h c"],
    keys_PKLC: Float[Tensor, "p k l c"],
    values_PKLC: Float[Tensor, "p k l c"],
    pages_B: Int[Tensor, "b"],
    last: int,
) -> tuple[Float[Tensor, "h c"], Float[Tensor, "h"]]:
    """Attention over the pages `pages_B`, of the last of which `last` keys count; and the log of each head's mass."""
    heads, (kv, tokens, width) = len(q_HC), keys_PKLC.shape[1:]
    out_HC, mass_H = torch.empty(heads, width), torch.empty(heads)
    sizes = (len(pages_B), last, tokens, heads, kv, width)
    call("attend_selected", q_HC.contiguous(), keys_PKLC, values_PKLC, pages_B.contiguous(), *sizes, out_HC, mass_H)
    return out_HC, mass_H
