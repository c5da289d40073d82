"""A bias of the choice made part of the router, as the Llama 4 folder has no place for one.

For rows of the router w_e and biases b_e, the new rows are w_e + b_e u, with u the least-squares answer to <u, x> = 1
over the router's inputs: exact where an input channel is constant, and near it in practice, as normed inputs of a
trained model have a mean. What is left: some choices near a tie change, and the gate is now the sigmoid of the biased
logit. Scaling each expert's first matrix to make up for its gate was tried, and makes it worse (docs/LOG.md).

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
    """Sums over a mixture's inputs x: of 1, of x and of x x^T."""

    def __init__(self, dim: int, bias_E: Tensor) -> None:
        self.count = bias_E.new_zeros(())
        self.sum_D, self.gram_DD = bias_E.new_zeros(dim), bias_E.new_zeros(dim, dim)

    def add(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        """A hook before the mixture."""
        x_ND = inputs[0].float()
        self.count += len(x_ND)
        self.sum_D += x_ND.sum(0)
        self.gram_DD += x_ND.T @ x_ND


@torch.no_grad()
def fold(
    model: Transformer,
    bias_LE: Float[Tensor, "l e"],
    optimizer: Optimizer,
    forwards: Callable[[], None],
    reduce: Callable[[Tensor], object] = lambda _: None,
) -> dict[str, list[float]]:
    """Bring the biases into the routers' master weights. `forwards` runs some batches; `reduce` sums over ranks.

    Gives, by layer: the largest bias, and how well <u, x> = 1 could be had (1: exactly).
    """
    named = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
    found = [_Inputs(model.config.dim, bias_E) for bias_E in bias_LE]
    hooks = [moe.register_forward_pre_hook(one.add) for moe, one in zip(named.values(), found, strict=True)]
    try:
        forwards()
    finally:
        for hook in hooks:
            hook.remove()
    fits = []
    for name, one, bias_E in zip(named, found, bias_LE, strict=True):
        for gathered in (one.count, one.sum_D, one.gram_DD):
            reduce(gathered)
        mean_D = one.sum_D / one.count
        u_D = constant_direction(mean_D, one.gram_DD / one.count)
        fits.append(round(float(u_D @ mean_D), 4))
        optimizer.add(f"{name}.router.weight", bias_E[:, None] * u_D)
    return {"largest_bias": [round(float(bias_E.abs().max()), 4) for bias_E in bias_LE], "fit": fits}
