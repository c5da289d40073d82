"""How the parameters of a group step: Muon or AdamW. A new rule is a class here and a line in `rules_of`.

Muon (Jordan et al. 2024): momentum, then the update is made nearly orthogonal by a Newton–Schulz iteration. Experts are
stacks of matrices and are treated matrix by matrix, in one batched product. AdamW: Loshchilov and Hutter, 1711.05101.
"""

# B stacked matrices, R rows, C columns

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from herd.config import OptimizerConfig
from herd.core.streams import seed_of
from herd.model.lora import is_adapter
from herd.model.parallel import Parallel, local
from herd.train.passes import BLOCK, AdamWStep, adamw, apply_update, momentum_update, new_low_bits

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
STACK = 16 * 2**20
"""Most numbers that Muon makes orthogonal at a time: it needs about four times as many for itself."""


class Trained:
    """A parameter in training: its weight, the low bits of its master, and the moments that its rule keeps."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name, self.parameter = name, parameter
        self.low_bits = new_low_bits(self.weight)
        self.moments: dict[str, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        """This rank's part, to be changed in place."""
        return local(self.parameter.detach())

    @property
    def grad(self) -> Tensor | None:
        """This rank's part of the gradient."""
        return None if self.parameter.grad is None else local(self.parameter.grad)

    def pop_grad(self) -> Tensor:
        """The gradient, whose memory is free once it has been used."""
        grad = self.grad
        assert grad is not None
        self.parameter.grad = None
        return grad


@dataclass(frozen=True, kw_only=True)
class Now:
    """What a step is the same in for all groups."""

    clip: float
    """Factor on the gradients."""
    lr_factor: float
    """Factor on the learning rates."""
    num_updates: int
    """Updates made, this one included: not the step, as skipped steps make none."""


class Rule(ABC):
    """Steps the parameters of one group."""

    @abstractmethod
    def new_moments(self, weight: Tensor) -> dict[str, Tensor]:
        """What is kept of a parameter from one step to the next."""

    @abstractmethod
    def step(self, group: Sequence[Trained], now: Now) -> None:
        """Apply the gradients of a group, all of which have one, and forget them."""


@dataclass(frozen=True, kw_only=True)
class AdamW(Rule):
    """Moments in fp32 or 8 bits; see herd.train.passes."""

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eight_bit: bool

    def new_moments(self, weight: Tensor) -> dict[str, Tensor]:
        dtype = torch.uint8 if self.eight_bit else torch.float32
        moments = {name: torch.zeros_like(weight, dtype=dtype) for name in ("first", "second")}
        if self.eight_bit:
            moments["scales"] = torch.zeros(-(-weight.numel() // BLOCK), 2, device=weight.device)
        return moments

    def step(self, group: Sequence[Trained], now: Now) -> None:
        (beta1, beta2), rate = self.betas, now.lr_factor * self.lr
        numbers = AdamWStep(
            clip=now.clip,
            betas=self.betas,
            keep=1 - rate * self.weight_decay,
            rate=rate / (1 - beta1**now.num_updates),
            unbias=1 / (1 - beta2**now.num_updates),
        )
        for one in group:
            moments = one.moments["first"], one.moments["second"], one.moments.get("scales")
            seed = seed_of(0, one.name, now.num_updates) & 0xFFFFFFFF
            adamw(one.pop_grad(), one.weight, one.low_bits, *moments, numbers, seed)


@dataclass(frozen=True, kw_only=True)
class Muon(Rule):
    """For matrices [out, in], and stacks of matrices [experts, in, out]. Of a sharded matrix every rank that has a part
    makes the whole update orthogonal, and keeps its part."""

    lr: float
    weight_decay: float
    momentum: float
    parallel: Parallel

    def new_moments(self, weight: Tensor) -> dict[str, Tensor]:
        return {"first": torch.zeros_like(weight, dtype=torch.float32)}

    def step(self, group: Sequence[Trained], now: Now) -> None:
        for stack in self._stacks(group):
            self._step_stack(stack, now.clip, now.lr_factor * self.lr)

    def _step_stack(self, stack: Sequence[Trained], clip: float, rate: float) -> None:
        updates = []
        for one in stack:
            update = momentum_update(one.pop_grad(), one.moments["first"], clip, self.momentum)
            update = self.parallel.join_matrices(one.name, update)
            updates.append(update if update.ndim == 3 else update[None])
        stacked, sizes = torch.cat(updates), [len(update) for update in updates]
        rows, columns = stacked.shape[-2:]
        if not _of_experts(stack[0].name):
            rows, columns = columns, rows  # nn.Linear keeps [out, in], experts [in, out]
        scale = max(1.0, columns / rows) ** 0.5
        keep = 1 - rate * self.weight_decay
        for one, update in zip(stack, orthogonalise(stacked).split(sizes), strict=True):
            update = self.parallel.take_matrices(one.name, update if one.weight.ndim == 3 else update[0])
            apply_update(one.weight, one.low_bits, update, keep, rate * scale)

    def _stacks(self, group: Sequence[Trained]) -> Iterator[list[Trained]]:
        """Matrices of one shape step together, at most STACK numbers: many small products become one batched one."""
        alike: dict[tuple[object, ...], list[Trained]] = defaultdict(list)
        for one in group:
            shape = self.parallel.shape(one.name, one.moments["first"])
            alike[(*shape[-2:], _of_experts(one.name))].append(one)
        for same in alike.values():
            at_a_time = max(1, STACK // prod(self.parallel.shape(same[0].name, same[0].moments["first"])))
            yield from (same[i : i + at_a_time] for i in range(0, len(same), at_a_time))


def _of_experts(name: str) -> bool:
    return name.endswith(("EDF", "EFD"))


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


def group_of(name: str, parameter: Tensor) -> str:
    """The group of a parameter of `Transformer`: a key of `rules_of`."""
    if name.startswith("embedding."):
        return "embedding"
    if name.startswith("unembedding."):
        return "unembedding"
    if "router" in name:
        return "router"
    if is_adapter(name):
        return "adapter"
    if parameter.ndim < 2 or name.endswith("positions"):
        return "other"
    return "matrix"


def rules_of(config: OptimizerConfig, parallel: Parallel) -> dict[str, Rule]:
    """Group of parameters → the rule that steps it."""

    def adamw_rule(lr: float, weight_decay: float, *, eight_bit: bool = config.moments == "8bit") -> AdamW:
        return AdamW(lr=lr, weight_decay=weight_decay, betas=config.betas, eight_bit=eight_bit)

    decay, other_decay = config.weight_decay, config.other_weight_decay
    return {
        "matrix": Muon(lr=config.matrix_lr, weight_decay=decay, momentum=config.momentum, parallel=parallel)
        if config.matrix == "muon"
        else adamw_rule(config.adamw_lr, decay),
        "embedding": adamw_rule(config.embedding_lr, other_decay),
        "unembedding": adamw_rule(config.unembedding_lr, decay),
        "adapter": adamw_rule(config.adamw_lr, decay),
        # Routers, norms and biases are few numbers, and each of them matters.
        "router": adamw_rule(config.other_lr, decay, eight_bit=False),
        "other": adamw_rule(config.other_lr, other_decay, eight_bit=False),
    }
