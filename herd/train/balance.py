"""Even load over the experts.

By default without a loss (Wang et al., arXiv 2408.15664): a bias b_e for each expert is added to the router's logits
where experts are chosen and nowhere else, and after each step moves against the expert's load. The gate stays the
sigmoid of the logit without it, and balancing adds no gradient to it. The Llama 4 folder has no place for a bias: see
herd.train.fold. The auxiliary loss of Switch Transformer (arXiv 2101.03961) is there as the classical way.
"""

# N tokens, E experts, L mixtures

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd.core.batch import to_device
from herd.data.loading.batches import B, Batches
from herd.model.moe import MoE
from herd.model.transformer import Transformer
from herd.train.fold import BATCHES, fold, fold_steps
from herd.train.optimizer import Optimizer

SLOW, PACE = 0.012, 0.4
"""How fast the drift follows, and its bound, both by the bias's own rate."""


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
    if not logits:  # a model without mixtures
        return model.embedding.weight.new_zeros((), dtype=torch.float32)
    rows = len(logits[0])
    count_LE = sum_counts(torch.stack([load_E for _, load_E in last if load_E is not None]).nan_to_num() * rows)
    all_rows = count_LE[0].sum()
    if rows == 0:  # a rank without tokens
        return logits[0].new_zeros(())
    losses = [balance_loss(logits_NE, count_E / all_rows) for logits_NE, count_E in zip(logits, count_LE, strict=True)]
    return torch.stack(losses).mean() * (rows / all_rows)


def update_bias(
    bias_LE: Float[Tensor, "l e"], drift_LE: Float[Tensor, "l e"], count_LE: Int[Tensor, "l e"], rate: float
) -> tuple[Float[Tensor, "l e"], Float[Tensor, "l e"]]:
    """With v_e = 1 - count_e / mean count: the bias b_e + rate * v_e + d_e, shifted to a mean of zero, which changes no
    choice; and the drift, d_e + SLOW * rate * v_e, held within PACE * rate either way, which comes first.

    Proportional to the violation, where the published step is the sign of it: documents come in bursts, and a median at
    the mean is no mean at the mean. The drift is what the bias moves by on its own, so that an expert whose logits rise
    steadily is not busy for as long as they do. Its bound keeps a collapse from being paid back later.
    """
    violation_LE = 1 - count_LE / count_LE.float().mean(-1, keepdim=True).clamp_min(1)
    drift_LE = (drift_LE + SLOW * rate * violation_LE).clamp(-PACE * rate, PACE * rate)
    bias_LE = bias_LE + rate * violation_LE + drift_LE
    return bias_LE - bias_LE.mean(-1, keepdim=True), drift_LE


class Balancer:
    """A hook of the loop: the biases of a model in training, moved once a step by what all its forwards counted.

    Before the end they are folded into the router, so that the model needs none when it is finished; `batches` and
    `forward` are for that. `reduce` sums a tensor over the ranks in place: counts [L, E], and what a fold gathers.
    """

    def __init__(
        self,
        model: Transformer,
        rate: float,
        batches: Batches[B],
        forward: Callable[[Transformer, B], object],
        *,
        reduce: Callable[[Tensor], object] = lambda _: None,
    ) -> None:
        self.model, self.rate, self.reduce = model, rate, reduce
        self.mixtures = mixtures(model)
        self.folds = fold_steps(batches.num_steps)
        device = model.embedding.weight.device
        self._forward: Callable[[int], object] = lambda step: forward(model, to_device(batches.batch(step), device))
        shape = (len(self.mixtures), model.config.moe.num_experts)
        self.bias_LE = torch.zeros(shape, device=device)
        self.drift_LE = torch.zeros_like(self.bias_LE)
        self._set_biases()

    def _set_biases(self) -> None:
        """Set the biases where the model reads them."""
        if self.rate:
            for moe, bias_E in zip(self.mixtures, self.bias_LE, strict=True):
                moe.bias_E = bias_E

    def _pop_counts(self) -> list[Tensor]:
        """Each mixture's counts since the last call."""
        counts = [moe.count_E for moe in self.mixtures if moe.count_E is not None]
        for moe in self.mixtures:
            moe.count_E = None
        return counts

    def after_step(self, step: int, optimizer: Optimizer, *, updated: bool) -> dict[str, object]:
        """Move the biases against the counts of this step, but an outlier, and fold them if it is time; gives what to
        record."""
        counts = self._pop_counts()
        if not counts:  # a stage that trains another part of the model
            return {}
        count_LE = torch.stack(counts)
        self.reduce(count_LE)
        if self.rate and updated:
            self.bias_LE, self.drift_LE = update_bias(self.bias_LE, self.drift_LE, count_LE, self.rate)
            self._set_biases()
        count_LE = count_LE.cpu()  # what is recorded is read once
        shares_LE = count_LE / count_LE.sum(-1, keepdim=True)
        worst = max(max_violation(load_E) for load_E in shares_LE)
        metrics: dict[str, object] = {"expert_load": count_LE.tolist(), "max_vio": worst}
        if self.rate and step + 1 in self.folds:
            metrics["fold"] = self._fold(step + 1, optimizer)
        return metrics

    @torch.no_grad()
    def _fold(self, done: int, optimizer: Optimizer) -> dict[str, list[float]]:
        def rerun_batches() -> None:
            for step in range(max(0, done - BATCHES), done):
                self._forward(step)

        facts = fold(self.model, self.bias_LE, optimizer, rerun_batches, self.reduce)
        self.bias_LE = torch.zeros_like(self.bias_LE)
        self._set_biases()
        self._pop_counts()
        return facts

    def state_dict(self) -> dict[str, Tensor]:
        return {"bias_LE": self.bias_LE, "drift_LE": self.drift_LE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.bias_LE, self.drift_LE = state["bias_LE"].clone(), state["drift_LE"].clone()
        self._set_biases()
