"""Experts that the engine used for a token beside those that the trainer's router chooses.

In bf16 the two forwards round differently, and older weights choose otherwise: a token then visits another expert in
training than the one that its log-probability came from. With recorded routes the trainer uses the engine's experts;
the gates are its own router's, so that gradients flow to the router for them, too. Source: Ma et al., "Stabilizing MoE
Reinforcement Learning by Aligning Training and Inference Routers" (arXiv 2510.11370).
"""

# M tokens, k = top_k, J = mixture layers * k, L mixture layers

from jaxtyping import UInt8
from torch import Tensor

from herd.core.device import sum_dtype
from herd.core.metrics import Mean, Number
from herd.model.moe import UNKNOWN


def route_flips(
    recorded_MJ: UInt8[Tensor, "m j"], chosen_MJ: UInt8[Tensor, "m j"], top_k: int
) -> dict[str, Number | Mean]:
    """Share of the tokens for which the router chose other experts than those recorded, in whatever order: over all
    mixture layers `route_flips`, in each of them `route_flips_0`, …"""
    recorded_MLk, chosen_MLk = (one.unflatten(1, (-1, top_k)).sort(-1).values for one in (recorded_MJ, chosen_MJ))
    known_ML = (recorded_MLk != UNKNOWN).all(-1)
    flips_ML = (recorded_MLk != chosen_MLk).any(-1) & known_ML
    totals_L, counts_L = (one.sum(0, dtype=sum_dtype(one.device)) for one in (flips_ML, known_ML))
    found: dict[str, Number | Mean] = {"route_flips": Mean(totals_L.sum(), float(counts_L.sum()))}
    for layer, (total, count) in enumerate(zip(totals_L, counts_L.tolist(), strict=True)):
        found[f"route_flips_{layer}"] = Mean(total, count)
    return found
