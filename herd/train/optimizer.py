"""Muon for matrices, AdamW for the rest; fp32 master weights behind a model of any precision.

Muon (Jordan et al. 2024): momentum, then the update is made nearly orthogonal by a Newton–Schulz iteration. Experts are
stacks of matrices and are treated matrix by matrix, in one batched product. AdamW: Loshchilov and Hutter, 1711.05101.
"""

# B stacked matrices, R rows, C columns

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from herd import native
from herd.config import OptimizerConfig
from herd.model.parallel import ALONE, Parallel, local
from herd.model.transformer import Transformer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalise(update_BRC: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: singular values land between 0.7 and 1.2. In the precision
    of the update, which is that of the gradient: bf16 does."""
    a, b, c = NEWTON_SCHULZ
    x = update_BRC
    wide = x.shape[-2] > x.shape[-1]
    if wide:
        x = x.mT.contiguous()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT.contiguous() if wide else x


@torch.no_grad()
def momentum_update(grad: Tensor, first: Tensor, clip: float, momentum: float) -> Tensor:
    """Nesterov: `first` moves to `clip * grad` by 1 - momentum; the update, in grad's precision, lies between them."""
    if native.available(grad):
        return native.momentum_update(grad, first, clip, momentum)
    grad32 = grad.float() * clip
    first.lerp_(grad32, 1 - momentum)
    return grad32.lerp(first, momentum).to(grad.dtype)


@torch.no_grad()
def descend(parameter: Tensor, master: Tensor, update: Tensor, keep: float, rate: float) -> None:
    """master = keep * master - rate * update; the parameter follows in its precision."""
    if native.available(parameter):
        native.descend(parameter, master, update, keep, rate)
        return
    master.mul_(keep).add_(update.view_as(master), alpha=-rate)
    parameter.copy_(master)


@torch.no_grad()
def adamw(
    parameter: Tensor,
    master: Tensor,
    first: Tensor,
    second: Tensor,
    grad: Tensor,
    *,
    clip: float,
    betas: tuple[float, float],
    keep: float,
    rate: float,
    unbias: float,
) -> None:
    """AdamW on the master, which the parameter follows: `rate` holds the first moment's correction, `unbias` is the
    second's; `keep` is 1 - rate * decay."""
    if native.available(parameter):
        native.adamw(parameter, master, first, second, grad, clip, betas, keep, rate, unbias)
        return
    grad32 = grad.float() * clip
    first.lerp_(grad32, 1 - betas[0])
    second.lerp_(grad32.square(), 1 - betas[1])
    master.mul_(keep).addcdiv_(first, (second * unbias).sqrt_().add_(1e-10), value=-rate)
    parameter.copy_(master)


def kind_of(name: str, parameter: Tensor) -> str:
    """Which step size and rule a parameter of `Transformer` follows."""
    if name.startswith("embedding."):
        return "embedding"
    if name.startswith("unembedding."):
        return "unembedding"
    if parameter.ndim < 2 or "router" in name or name.endswith("positions"):
        return "other"
    return "matrix"


class Optimizer:
    """Steps a model whose parameters carry gradients; keeps fp32 masters and moments, of this rank's shards."""

    def __init__(self, model: Transformer, config: OptimizerConfig, num_steps: int, parallel: Parallel = ALONE) -> None:
        self.config, self.num_steps, self.parallel = config, num_steps, parallel
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.kind = {name: kind_of(name, p) for name, p in self.parameters.items()}
        self.master = {name: local(p.detach()).float().clone() for name, p in self.parameters.items()}
        self.first = {name: torch.zeros_like(m) for name, m in self.master.items()}
        self.second = {name: torch.zeros_like(m) for name, m in self.master.items() if self.kind[name] != "matrix"}
        self.num_updates = torch.zeros(1, dtype=torch.int64)
        # Matrices of one shape step together: many small products become one batched one.
        self.stacks: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, master in self.master.items():
            if self.kind[name] == "matrix":
                self.stacks[parallel.shape(name, master)[-2:]].append(name)

    def schedule(self, step: int) -> float:
        """Factor on all step sizes: a rise, a plateau, a linear fall to zero at the last step."""
        warmup = max(1, round(self.config.warmup * self.num_steps))
        decay = max(1, round(self.config.decay * self.num_steps))
        return min(1.0, (step + 1) / warmup, (self.num_steps - step) / decay)

    def grad_norm(self) -> float:
        """The norm of all gradients together, on all ranks."""
        return self.parallel.norm({name: p.grad for name, p in self.parameters.items() if p.grad is not None})

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, step: int, norm: float) -> None:
        """Apply the gradients of step `step` (from 0), clipped by their norm `norm`."""
        grads = {n: local(p.grad) for n, p in self.parameters.items() if p.grad is not None}
        self.num_updates += 1
        clip = min(1.0, self.config.max_grad_norm / (norm + 1e-6))
        factor = self.schedule(step)
        config = self.config
        rates = {"embedding": config.embedding_lr, "unembedding": config.unembedding_lr, "other": config.other_lr}
        for names in self.stacks.values():
            self._muon([n for n in names if n in grads], grads, clip, factor * config.matrix_lr)
        for name, grad in grads.items():
            if self.kind[name] != "matrix":
                self._adamw(name, grad, clip, factor * rates[self.kind[name]])

    def _muon(self, names: list[str], grads: dict[str, Tensor], clip: float, rate: float) -> None:
        if not names:
            return
        updates = []
        for name in names:
            update = momentum_update(grads[name], self.first[name], clip, self.config.momentum)
            update = self.parallel.join_matrices(name, update)
            updates.append(update if update.ndim == 3 else update[None])
        stacked, sizes = torch.cat(updates), [len(update) for update in updates]
        rows, columns = stacked.shape[-2:]
        if not names[0].endswith(("EDF", "EFD")):
            rows, columns = columns, rows  # nn.Linear keeps [out, in], experts [in, out]
        scale = max(1.0, columns / rows) ** 0.5
        keep = 1 - rate * self.config.weight_decay
        for name, update in zip(names, orthogonalise(stacked).split(sizes), strict=True):
            update = self.parallel.take_matrices(name, update if self.master[name].ndim == 3 else update[0])
            descend(local(self.parameters[name]), self.master[name], update, keep, rate * scale)

    def _adamw(self, name: str, grad: Tensor, clip: float, rate: float) -> None:
        beta1, beta2 = self.config.betas
        made = int(self.num_updates)  # not the step: outliers are left out
        adamw(
            local(self.parameters[name]),
            self.master[name],
            self.first[name],
            self.second[name],
            grad,
            clip=clip,
            betas=self.config.betas,
            keep=1 - rate * self.config.weight_decay,
            rate=rate / (1 - beta1**made),
            unbias=1 / (1 - beta2**made),
        )

    @torch.no_grad()
    def add(self, name: str, whole: Tensor) -> None:
        """Change a parameter, and its master, by a tensor of its whole shape."""
        self.master[name] += self.parallel.take(name, whole)
        local(self.parameters[name]).copy_(self.master[name])

    @torch.no_grad()
    def scale(self, name: str, factor: Tensor) -> None:
        """Multiply a parameter, and its master, by what broadcasts to its whole shape."""
        self.master[name] *= self.parallel.take(name, factor.expand(self.parallel.shape(name, self.master[name])))
        local(self.parameters[name]).copy_(self.master[name])

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments by parameter name, told as parts of whole tensors where ranks share them out; and how
        many updates were made."""
        parts = {part: self._described(part) for part in ("master", "first", "second")}
        return {**parts, "num_updates": self.num_updates}

    def _described(self, part: str) -> dict[str, Tensor]:
        return {name: self.parallel.described(name, tensor) for name, tensor in getattr(self, part).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take masters and moments from a checkpoint, and set the model's parameters from the masters."""
        with torch.no_grad():
            self.num_updates.copy_(state["num_updates"])
            for part in ("master", "first", "second"):
                for name, tensor in self._described(part).items():
                    tensor.copy_(state[part][name])
            for name, parameter in self.parameters.items():
                local(parameter).copy_(self.master[name])
