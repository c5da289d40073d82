"""Which tokens of a packed batch are computed once: documents that begin alike."""

# N tokens, S documents, M tokens that are computed, J = mixture layers * k

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from herd.core.device import send
from herd.model.attention import Sharing
from herd.model.prefixes import plan_prefixes


def share_prompts(
    prompts_N: Tensor | None,
    starts_S: Tensor,
    device: torch.device,
    routes_NJ: Tensor | None = None,
    *,
    attention: bool = False,
) -> Sharing | None:
    """The beginnings that neighbouring documents have in common as one; None where none is repeated.

    `prompts_N`, of the tokens of a document's beginning the number of its group, -1 elsewhere: in a group they are
    equal. `routes_NJ`: they are one only up to a token that was routed otherwise. `attention`: it computes them once,
    too, which is less work; else its sums are those of each document by itself.
    """
    if prompts_N is None:
        return None
    groups, starts = prompts_N.numpy(), starts_S.numpy()
    kept = np.ones(len(groups), dtype=bool)
    source = np.arange(len(groups))
    first, ends = 0, []
    for place, (begin, end) in enumerate(pairwise(starts.tolist())):
        length = int((groups[begin:end] >= 0).sum())
        if place and length and groups[begin] == groups[first]:
            if routes_NJ is not None:
                same_P = (routes_NJ[begin : begin + length] == routes_NJ[first : first + length]).all(1)
                length = int(same_P.long().cumprod(0).sum())
            kept[begin : begin + length] = False
            source[begin : begin + length] = np.arange(first, first + length)
        else:
            first, length = begin, 0
        ends.append((first, length, begin + length, end - begin - length))
    if kept.all():
        return None
    places = np.cumsum(kept) - 1
    documents = [(int(places[first]), length, int(places[own]), count) for first, length, own, count in ends if count]
    return Sharing(
        expand_N=send(torch.from_numpy(places[source]), device),
        pick_M=send(torch.from_numpy(np.flatnonzero(kept)), device),
        prefixes=plan_prefixes(documents, device) if attention else None,
    )
