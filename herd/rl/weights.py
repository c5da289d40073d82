"""A hook of the loop: after each step the new weights go to the rollouts, and what a checkpoint needs of them."""

import torch
from torch import Tensor

from herd.model.transformer import Transformer
from herd.rl.rollouts import Rollouts
from herd.train.checkpoint import State
from herd.train.optimizer import Optimizer


class Publish:
    """Version v is the weights after v steps. A checkpoint keeps the `lag` versions before its own: groups that were
    under way by one of them are drawn again by it."""

    def __init__(self, model: Transformer, rollouts: Rollouts) -> None:
        self.model, self.rollouts = model, rollouts
        self.version = 0
        self._older: dict[int, dict[str, Tensor]] = {}
        """The trained parameters of the versions before."""
        self._published = self._trained()

    def start(self) -> None:
        """Have the rollouts begin, with what the model is now."""
        older = {version: {**self._all(), **trained} for version, trained in self._older.items()}
        self.rollouts.start(self.version, self._all(), older)

    def after_step(self, step: int, optimizer: Optimizer, *, updated: bool) -> dict[str, object]:
        """Publish the weights after this step."""
        lag = self.rollouts.lag
        if lag:
            self._older[self.version] = self._published
            for old in [version for version in self._older if version <= step - lag]:
                del self._older[old]
        self.version = step + 1
        self.rollouts.publish(self.version, self._all())
        return {}

    def _trained(self) -> dict[str, Tensor]:
        """Copies of the trained parameters."""
        parameters = self.model.named_parameters()
        return {name: parameter.detach().clone() for name, parameter in parameters if parameter.requires_grad}

    def _all(self) -> dict[str, Tensor]:
        """The published parameters, and those that are not trained."""
        self._published = self._trained()
        return {**self.model.state_dict(), **self._published}

    def state_dict(self) -> State:
        """`lag` versions; zeros where there are not so many yet."""
        slots = {}
        for slot in range(self.rollouts.lag):
            kept = self._older.get(self.version - 1 - slot)
            slots[str(slot)] = kept or {name: torch.zeros_like(tensor) for name, tensor in self._published.items()}
        return {"version": torch.tensor(self.version), "older": slots}

    def load_state_dict(self, state: State) -> None:
        self.version = int(state["version"])
        self._older = {
            self.version - 1 - int(slot): {name: tensor.clone() for name, tensor in kept.items()}
            for slot, kept in state["older"].items()
            if self.version - 1 - int(slot) >= 0
        }
