"""The optimizer of a model: groups of parameters and the rule of each, fp32 masters behind a model of any precision,
clipping, and the schedule of the learning rates."""

from typing import Any

import torch
from torch import Tensor, nn

from herd.config import OptimizerConfig
from herd.errors import HerdError
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.train.passes import read_master, square_sum, write_master
from herd.train.rules import Now, Trained, group_of, rules_of


class Optimizer:
    """Steps a model whose parameters carry gradients; keeps masters and moments of this rank's shards."""

    def __init__(self, model: Transformer, config: OptimizerConfig, num_steps: int, parallel: Parallel = ALONE) -> None:
        self.config, self.num_steps, self.parallel = config, num_steps, parallel
        if config.moments == "8bit" and parallel.is_distributed:
            raise HerdError("moments=8bit works on one rank: its scales are not sharded; set moments=fp32")
        self.parameters: dict[str, nn.Parameter] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.rules = rules_of(config, parallel)
        self.trained = {name: Trained(name, parameter) for name, parameter in self.parameters.items()}
        self.groups: dict[str, list[Trained]] = {group: [] for group in self.rules}
        for name, one in self.trained.items():
            group = group_of(name, one.parameter)
            one.moments = self.rules[group].new_moments(one.weight)
            self.groups[group].append(one)
        self.num_updates = torch.zeros(1, dtype=torch.int64)

    def schedule(self, step: int) -> float:
        """Factor on all step sizes: a rise, a plateau at `lr_scale`, a linear fall to zero at the last step."""
        warmup_steps = max(1, round(self.config.warmup_ratio * self.num_steps))
        decay = max(1, round(self.config.decay * self.num_steps))
        return self.config.lr_scale * min(1.0, (step + 1) / warmup_steps, (self.num_steps - step) / decay)

    def grad_norm(self) -> Tensor:
        """The norm of all gradients together, on all ranks."""
        grads = {name: one.grad for name, one in self.trained.items()}
        return self.parallel.norm({name: square_sum(grad) for name, grad in grads.items() if grad is not None})

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, step: int, norm: float) -> None:
        """Apply the gradients of step `step` (from 0), clipped by their norm `norm`, and forget them one by one."""
        self.num_updates += 1
        now = Now(
            clip=min(1.0, self.config.max_grad_norm / (norm + 1e-6)),
            lr_factor=self.schedule(step),
            num_updates=int(self.num_updates),
        )
        for group, rule in self.rules.items():
            rule.step([one for one in self.groups[group] if one.parameter.grad is not None], now)

    @torch.no_grad()
    def add(self, name: str, whole: Tensor) -> None:
        """Add a tensor of a parameter's whole shape to it, and to its master."""
        one = self.trained[name]
        write_master(one.weight, one.low_bits, read_master(one.weight, one.low_bits) + self.parallel.take(name, whole))

    def state_dict(self) -> dict[str, Any]:
        """Weights, low bits of the masters and moments, by part and parameter name, described as parts of whole tensors
        where ranks share them out; and how many updates were made. They are the tensors in use."""
        state: dict[str, Any] = {"num_updates": self.num_updates}
        for name, one in self.trained.items():
            low_bits = {} if one.low_bits is None else {"low_bits": one.low_bits}
            for part, tensor in ({"weight": one.weight} | low_bits | one.moments).items():
                state.setdefault(part, {})[name] = self.parallel.checkpoint_view(name, tensor)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's tensors, the model's parameters among them."""
        for part, held in self.state_dict().items():
            if isinstance(held, Tensor):
                held.copy_(state[part])
            else:
                for name, tensor in held.items():
                    tensor.copy_(state[part][name])
