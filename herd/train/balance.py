"""Even load over the experts.

The auxiliary loss of Switch Transformer (arXiv 2101.03961): it acts on the router's weights alone, so nothing has to be
carried beside them. A selection bias would have to be: the Llama 4 folder has no place for one, and a model that
was balanced by a bias routes differently wherever that folder is opened.
"""

# N tokens, E experts

import torch
from jaxtyping import Float
from torch import Tensor

from herd.model.moe import MoE
from herd.model.transformer import Transformer


def balance_loss(logits_NE: Float[Tensor, "n e"], load_E: Float[Tensor, "e"]) -> Float[Tensor, ""]:
    """E * sum_e load_e * mean_n softmax(logits)_ne: 1 when even, E when one expert takes all."""
    return logits_NE.shape[1] * (load_E * torch.softmax(logits_NE, dim=-1).mean(0)).sum()


def max_violation(load_E: Float[Tensor, "e"]) -> float:
    """MaxVio: how far the busiest expert exceeds an even share, as a fraction of that share."""
    return float(load_E.max() * len(load_E) - 1)


def mixtures(model: Transformer) -> list[MoE]:
    """The MoE blocks of a model, first layer first."""
    return [module for module in model.modules() if isinstance(module, MoE)]


def total_balance_loss(model: Transformer) -> Tensor:
    """Mean over the layers of the last forward's balance losses."""
    losses = [balance_loss(moe.logits_NE, moe.load_E) for moe in mixtures(model)]  # type: ignore[arg-type]
    return torch.stack(losses).mean()


def expert_load(model: Transformer) -> dict[str, object]:
    """Each layer's shares by expert in the last forward, and the worst MaxVio."""
    loads = [moe.load_E for moe in mixtures(model) if moe.load_E is not None]
    return {
        "expert_load": [[round(x, 4) for x in load_E.tolist()] for load_E in loads],
        "max_vio": max((max_violation(load_E) for load_E in loads), default=0.0),
    }
