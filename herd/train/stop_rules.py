"""A hook of the loop that ends a preference training before it does harm."""

from collections.abc import Mapping

import torch
from torch import Tensor

from herd.config.dpo import DpoConfig
from herd.core.batch import Batch
from herd.core.device import sum_dtype
from herd.core.metrics import Mean, Number
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.train.checkpoint import State
from herd.train.loop import ENDED
from herd.train.optimizer import Optimizer
from herd.train.preference import PreferenceLossFunction

WINDOW = 4
"""Steps whose pairs a rule's mean is taken over; no rule is applied before as many."""
WATCHED = ("end_change", "kl")


class StopRules:
    """The rules of a config. `watch` has a loss function note what they need of each trained batch; its sums over the
    last steps are part of the checkpoints, so that a resumed run ends at the same step."""

    def __init__(self, config: DpoConfig, device: torch.device, parallel: Parallel = ALONE) -> None:
        self.config, self.parallel = config, parallel
        self._step = torch.zeros(len(WATCHED), 2, dtype=sum_dtype(device), device=device)
        self._steps: list[Tensor] = []
        """Totals and counts of WATCHED, [2, 2] of each of the last steps."""
        self.reason = ""
        """Why the training was ended, if it was."""

    def watch(self, loss_fn: PreferenceLossFunction) -> PreferenceLossFunction:
        """The loss function, noting what the rules need where it has a gradient."""

        def watched(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Number | Mean]]:
            loss, metrics = loss_fn(model, batch)
            if loss.requires_grad:
                self._add(metrics)
            return loss, metrics

        return watched

    def _add(self, metrics: Mapping[str, Number | Mean]) -> None:
        for place, name in enumerate(WATCHED):
            mean = metrics[name]
            assert isinstance(mean, Mean)
            self._step[place, 0] += mean.total
            self._step[place, 1] += mean.count

    def after_step(self, step: int, optimizer: Optimizer, *, updated: bool) -> dict[str, object]:
        """Whether the training is to end, and why."""
        summed = self.parallel.mesh.sum(self._step, tuple(self.parallel.mesh.sizes)).cpu()
        self._step = torch.zeros_like(self._step)
        self._steps = [*self._steps, summed][-WINDOW:]
        if len(self._steps) < WINDOW:
            return {}
        totals = torch.stack(self._steps).sum(0)
        end_change, kl = (totals[:, 0] / totals[:, 1]).tolist()
        if -end_change > self.config.max_end_drop:
            self.reason = (
                f"the log-probability of the token that ends the chosen answers is {-end_change:.3f} below the "
                f"reference's, max_end_drop={self.config.max_end_drop}"
            )
        elif kl > self.config.max_kl:
            self.reason = (
                f"the KL divergence from the reference is about {kl:.3f} nats a token, max_kl={self.config.max_kl}"
            )
        return {ENDED: self.reason} if self.reason else {}

    def state_dict(self) -> State:
        """The last steps, filled up with NaN."""
        missing = [torch.full_like(self._step.cpu(), torch.nan)] * (WINDOW - len(self._steps))
        return {"steps": torch.stack([*self._steps, *missing])}

    def load_state_dict(self, state: State) -> None:
        self._steps = [step for step in state["steps"] if not step.isnan().any()]
