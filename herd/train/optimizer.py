"""Muon or AdamW for matrices, AdamW for the rest; fp32 master weights behind a model of any precision.

Muon (Jordan et al. 2024): momentum, then the update is made nearly orthogonal by a Newton–Schulz iteration. Experts are
stacks of matrices and are treated matrix by matrix, in one batched product. AdamW: Loshchilov and Hutter, 1711.05101.
"""

# B stacked matrices, R rows, C columns

from collections import defaultdict
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from herd.config import OptimizerConfig
from herd.core.errors import HerdError
from herd.core.streams import seed_of
from herd.model.parallel import ALONE, Parallel, local
from herd.model.transformer import Transformer
from herd.train.passes import (
    BLOCK,
    AdamW,
    adamw,
    descend,
    keep_master,
    master_of,
    momentum_update,
    rest_of,
    square_sum,
)

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
STACK = 16 * 2**20
"""Most numbers that Muon turns at a time: it needs about four times as many for itself."""


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
    """Steps a model whose parameters carry gradients; keeps fp32 masters and moments of this rank's shards (see
    herd.train.passes)."""

    def __init__(self, model: Transformer, config: OptimizerConfig, num_steps: int, parallel: Parallel = ALONE) -> None:
        self.config, self.num_steps, self.parallel = config, num_steps, parallel
        if config.moments == "8bit" and parallel.spread:
            raise HerdError("moments=8bit works on one rank: its scales are not sharded; set moments=fp32")
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.kind = {name: kind_of(name, p) for name, p in self.parameters.items()}
        self.turned = {n for n, kind in self.kind.items() if kind == "matrix" and config.matrix == "muon"}
        """Those that Muon steps."""
        self.num_updates = torch.zeros(1, dtype=torch.int64)
        # Norms and routers are few numbers, and each of them matters.
        coded = {n for n in self.kind if config.moments == "8bit" and self.kind[n] != "other" and n not in self.turned}
        self.rest: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            weight = local(parameter.detach())
            if (rest := rest_of(weight)) is not None:
                self.rest[name] = rest
            dtype = torch.uint8 if name in coded else torch.float32
            self.first[name] = torch.zeros_like(weight, dtype=dtype)
            if name not in self.turned:
                self.second[name] = torch.zeros_like(weight, dtype=dtype)
            if name in coded:
                self.scales[name] = torch.zeros(-(-weight.numel() // BLOCK), 2, device=weight.device)

    def schedule(self, step: int) -> float:
        """Factor on all step sizes: a rise, a plateau at `lr_scale`, a linear fall to zero at the last step."""
        warmup = max(1, round(self.config.warmup * self.num_steps))
        decay = max(1, round(self.config.decay * self.num_steps))
        return self.config.lr_scale * min(1.0, (step + 1) / warmup, (self.num_steps - step) / decay)

    def grad_norm(self) -> float:
        """The norm of all gradients together, on all ranks."""
        return self.parallel.norm({name: square_sum(grad) for name, grad in self.grads().items()})

    def grads(self) -> dict[str, Tensor]:
        """This rank's gradients by parameter name."""
        return {name: local(p.grad) for name, p in self.parameters.items() if p.grad is not None}

    def weight(self, name: str) -> Tensor:
        """This rank's part of a parameter, to be changed in place."""
        return local(self.parameters[name].detach())

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, step: int, norm: float) -> None:
        """Apply the gradients of step `step` (from 0), clipped by their norm `norm`, and forget them one by one."""
        self.num_updates += 1
        config, factor = self.config, self.schedule(step)
        clip = min(1.0, config.max_grad_norm / (norm + 1e-6))
        rates = {
            "embedding": config.embedding_lr,
            "unembedding": config.unembedding_lr,
            "other": config.other_lr,
            "matrix": config.matrix_lr if config.matrix == "muon" else config.adamw_lr,
        }
        grads = self.grads()
        for names in self._stacks([name for name in grads if name in self.turned]):
            self._muon(names, grads, clip, factor * config.matrix_lr)
        for name in list(grads):
            self.parameters[name].grad = None
            self._adamw(name, grads.pop(name), clip, factor * rates[self.kind[name]])

    def _muon(self, names: list[str], grads: dict[str, Tensor], clip: float, rate: float) -> None:
        updates = []
        for name in names:
            self.parameters[name].grad = None
            update = momentum_update(grads.pop(name), self.first[name], clip, self.config.momentum)
            update = self.parallel.join_matrices(name, update)
            updates.append(update if update.ndim == 3 else update[None])
        stacked, sizes = torch.cat(updates), [len(update) for update in updates]
        rows, columns = stacked.shape[-2:]
        if not names[0].endswith(("EDF", "EFD")):
            rows, columns = columns, rows  # nn.Linear keeps [out, in], experts [in, out]
        scale = max(1.0, columns / rows) ** 0.5
        keep = 1 - rate * self.config.weight_decay
        for name, update in zip(names, orthogonalise(stacked).split(sizes), strict=True):
            update = self.parallel.take_matrices(name, update if self.first[name].ndim == 3 else update[0])
            descend(self.weight(name), self.rest.get(name), update, keep, rate * scale)

    def _adamw(self, name: str, grad: Tensor, clip: float, rate: float) -> None:
        beta1, beta2 = self.config.betas
        made = int(self.num_updates)  # not the step: outliers are left out
        rule = AdamW(
            clip=clip,
            betas=self.config.betas,
            keep=1 - rate * self.config.weight_decay,
            rate=rate / (1 - beta1**made),
            unbias=1 / (1 - beta2**made),
        )
        seed = seed_of(0, name, made) & 0xFFFFFFFF
        state = self.first[name], self.second[name], self.scales.get(name)
        adamw(grad, self.weight(name), self.rest.get(name), *state, rule, seed)

    def _stacks(self, names: list[str]) -> Iterator[list[str]]:
        """Matrices of one shape step together, at most STACK numbers: many small products become one batched one."""
        alike: dict[tuple[object, ...], list[str]] = defaultdict(list)
        for name in names:
            shape = self.parallel.shape(name, self.first[name])
            alike[(*shape[-2:], name.endswith(("EDF", "EFD")))].append(name)
        for group in alike.values():
            at_a_time = max(1, STACK // prod(self.parallel.shape(group[0], self.first[group[0]])))
            yield from (group[i : i + at_a_time] for i in range(0, len(group), at_a_time))

    @torch.no_grad()
    def add(self, name: str, whole: Tensor) -> None:
        """Change a parameter, and its master, by a tensor of its whole shape."""
        weight, rest = self.weight(name), self.rest.get(name)
        keep_master(weight, rest, master_of(weight, rest) + self.parallel.take(name, whole))

    def state_dict(self) -> dict[str, Any]:
        """Weights, the masters' rests and moments, by part and parameter name, told as parts of whole tensors where
        ranks share them out; and how many updates were made. They are the tensors in use."""
        parts = {
            "weight": {name: self.weight(name) for name in self.parameters},
            "rest": self.rest,
            "first": self.first,
            "second": self.second,
        }
        told: dict[str, Any] = {
            part: {name: self.parallel.described(name, tensor) for name, tensor in tensors.items()}
            for part, tensors in parts.items()
            if tensors
        }
        return told | ({"scales": self.scales} if self.scales else {}) | {"num_updates": self.num_updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's tensors, the model's parameters among them."""
        for part, held in self.state_dict().items():
            if isinstance(held, Tensor):
                held.copy_(state[part])
            else:
                for name, tensor in held.items():
                    tensor.copy_(state[part][name])
