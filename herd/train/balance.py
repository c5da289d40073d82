"""Even load over the experts.

By default without a loss (Wang et al., arXiv 2408.15664): a bias b_e for each expert is added to the router's logits
where experts are chosen and nowhere else, and after each step moves against the expert's load. The gate stays the
sigmoid of the logit without it, and no gradient bends the router.
"""

# N tokens, E experts, L mixtures

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
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


def total_balance_loss(model: Transformer, sum_counts: Callable[[Tensor], Tensor] = lambda counts: counts) -> Tensor:
    """Mean over the layers of the last forward's balance losses.

    With `sum_counts`, which sums the counts [L, E] over the ranks in place, this rank's share of that of all tokens.
    """
    last = [(moe.logits_NE, moe.load_E) for moe in mixtures(model)]
    logits = [logits_NE for logits_NE, _ in last if logits_NE is not None]
    rows = len(logits[0])
    count_LE = sum_counts(torch.stack([load_E for _, load_E in last if load_E is not None]).nan_to_num() * rows)
    all_rows = count_LE[0].sum()
    if rows == 0:  # a rank without tokens
        return torch.zeros(())
    losses = [balance_loss(logits_NE, count_E / all_rows) for logits_NE, count_E in zip(logits, count_LE, strict=True)]
    return torch.stack(losses).mean() * (rows / all_rows)


def moved(bias_LE: Float[Tensor, "l e"], count_LE: Int[Tensor, "l e"], rate: float) -> Float[Tensor, "l e"]:
    """b_e + rate * clip(1 - count_e / mean count, -1, 1), shifted to a mean of zero, which changes no choice.

    Near an even load the step shrinks with the violation, where the published sign(mean - count) would go on to
    jump; and what an expert got too much of over a run is told by how far its bias came: the sum of its violations is
    its bias over the rate.
    """
    mean_L1 = count_LE.float().mean(-1, keepdim=True)
    bias_LE = bias_LE + rate * (1 - count_LE / mean_L1.clamp_min(1)).clamp(-1, 1)
    return bias_LE - bias_LE.mean(-1, keepdim=True)


class Balancer:
    """The biases of a model in training: counted over all forwards of a step, moved once after it.

    `reduce` sums the counts [L, E] over the ranks in place.
    """

    def __init__(self, model: Transformer, rate: float, *, reduce: Callable[[Tensor], object] = lambda _: None) -> None:
        self.mixtures, self.rate, self.reduce = mixtures(model), rate, reduce
        shape = (len(self.mixtures), model.config.moe.num_experts)
        self.bias_LE = torch.zeros(shape, device=model.embedding.weight.device)
        self._show()

    def _show(self) -> None:
        """Set the biases where the model reads them."""
        if self.rate:
            for moe, bias_E in zip(self.mixtures, self.bias_LE, strict=True):
                moe.bias_E = bias_E

    def after_step(self, step: int, *, updated: bool) -> dict[str, object]:
        """Move the biases against the counts of this step, but an outlier, and clear these; gives what to record."""
        counts = [moe.count_E for moe in self.mixtures if moe.count_E is not None]
        for moe in self.mixtures:
            moe.count_E = None
        if not counts:  # a stage that trains another part of the model
            return {}
        count_LE = torch.stack(counts)
        self.reduce(count_LE)
        if self.rate and updated:
            self.bias_LE = moved(self.bias_LE, count_LE, self.rate)
            self._show()
        shares_LE = count_LE / count_LE.sum(-1, keepdim=True)
        return {"expert_load": count_LE.tolist(), "max_vio": max(max_violation(load_E) for load_E in shares_LE)}

    def state_dict(self) -> dict[str, Tensor]:
        return {"bias_LE": self.bias_LE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.bias_LE = state["bias_LE"].clone()
        self._show()
