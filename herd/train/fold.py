"""A bias of the choice made part of the router, as the Llama 4 folder has no place for one.

For rows of the router w_e and biases b_e, the new rows are w_e + b_e u, with u the least-squares answer to <u, x> = 1
over the router's inputs: exact where an input channel is constant, and near it in practice, as normed inputs of a
trained model have a mean. What is left:

* <u, x> is not quite 1, so some choices near a tie change;
* the gate is now the sigmoid of the biased logit. Each expert's first matrix is scaled by c_e = sum g g' / sum g'^2
  over its tokens (g the gate before, g' after), so that on average it goes on getting its input at the same scale.

Training goes on after each fold but the last, with the biases from zero again: the model learns with the gates that it
will have, and what the last fold, after the last step, has to bring in is small. The fold reads the last batches again
rather than keep statistics, so a checkpoint needs nothing for it.
"""

# N tokens, D width, E experts, L mixtures

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from herd.model.moe import MoE
from herd.model.transformer import Transformer
from herd.train.optimizer import Optimizer

SHARES = (0.7, 0.85, 1.0)
"""After which shares of the steps biases are folded: while the learning rate falls, and at the end."""
BATCHES = 8
"""How many of the last batches are read again."""
RIDGE = 1e-3
"""Of the mean squared input, against directions that these batches hardly show."""


def fold_steps(num_steps: int) -> set[int]:
    """Steps done when biases are folded."""
    return {round(share * num_steps) for share in SHARES} - {0}


def constant_direction(mean_D: Float[Tensor, "d"], gram_DD: Float[Tensor, "d d"]) -> Float[Tensor, "d"]:
    """u that minimises the mean of (<u, x> - 1)^2 + ridge |u|^2, from the means of x and of x x^T."""
    ridge = RIDGE * gram_DD.diagonal().mean()
    eye_DD = torch.eye(len(mean_D), dtype=torch.float64, device=mean_D.device)
    return torch.linalg.solve(gram_DD.double() + ridge * eye_DD, mean_D.double()).float()


class _Inputs:
    """What the fold needs to know of one mixture's inputs x, gathered over two passes."""

    def __init__(self, moe: MoE, bias_E: Tensor) -> None:
        self.moe, self.bias_E = moe, bias_E
        dim = moe.router.weight.shape[1]
        self.count, self.same = bias_E.new_zeros(()), bias_E.new_zeros(())
        self.sum_D, self.gram_DD = bias_E.new_zeros(dim), bias_E.new_zeros(dim, dim)
        self.u_D = bias_E.new_zeros(dim)
        self.both_E, self.after_E = torch.zeros_like(bias_E), torch.zeros_like(bias_E)

    def first(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        x_ND = inputs[0].float()
        self.count += len(x_ND)
        self.sum_D += x_ND.sum(0)
        self.gram_DD += x_ND.T @ x_ND

    def second(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        x_ND = inputs[0].float()
        logits_NE = x_ND @ self.moe.router.weight.float().T
        folded_NE = logits_NE + (x_ND @ self.u_D)[:, None] * self.bias_E
        expert_Nk = (logits_NE + self.bias_E).topk(self.moe.config.top_k, dim=-1).indices
        before_Nk, after_Nk = logits_NE.gather(-1, expert_Nk).sigmoid(), folded_NE.gather(-1, expert_Nk).sigmoid()
        self.both_E.index_add_(0, expert_Nk.flatten(), (before_Nk * after_Nk).flatten())
        self.after_E.index_add_(0, expert_Nk.flatten(), after_Nk.square().flatten())
        self.same += (folded_NE.argmax(-1) == expert_Nk[:, 0]).sum()


def run_over(modules: list[MoE], hooks: list[Callable[..., None]], forwards: Callable[[], None]) -> None:
    """`forwards()` with a hook before each of the modules."""
    handles = [moe.register_forward_pre_hook(hook) for moe, hook in zip(modules, hooks, strict=True)]
    try:
        forwards()
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def fold(
    model: Transformer,
    bias_LE: Float[Tensor, "l e"],
    optimizer: Optimizer,
    forwards: Callable[[], None],
    reduce: Callable[[Tensor], object] = lambda _: None,
) -> dict[str, list[float]]:
    """Bring the biases into the master weights; `forwards` runs the model over some batches, `reduce` sums over ranks.

    Gives, by layer: the largest bias, how well <u, x> = 1 could be had (1: exactly) and the share of tokens that keep
    their first expert.
    """
    named = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
    found = [_Inputs(moe, bias_E) for moe, bias_E in zip(named.values(), bias_LE, strict=True)]
    run_over(list(named.values()), [inputs.first for inputs in found], forwards)
    fits = []
    for inputs in found:
        for gathered in (inputs.count, inputs.sum_D, inputs.gram_DD):
            reduce(gathered)
        mean_D = inputs.sum_D / inputs.count
        inputs.u_D = constant_direction(mean_D, inputs.gram_DD / inputs.count)
        fits.append(float(inputs.u_D @ mean_D))
    run_over(list(named.values()), [inputs.second for inputs in found], forwards)
    for name, inputs in zip(named, found, strict=True):
        for gathered in (inputs.same, inputs.both_E, inputs.after_E):
            reduce(gathered)
        scale_E = torch.where(inputs.after_E > 0, inputs.both_E / inputs.after_E.clamp_min(1e-12), 1.0)
        optimizer.add(f"{name}.router.weight", inputs.bias_E[:, None] * inputs.u_D)
        optimizer.scale(f"{name}.gate_up_EDF", scale_E[:, None, None])
    facts = {
        "largest_bias": [float(inputs.bias_E.abs().max()) for inputs in found],
        "fit": fits,
        "same_choice": [float(inputs.same / inputs.count) for inputs in found],
    }
    return {key: [round(value, 4) for value in values] for key, values in facts.items()}
