"""A hook of the loop: after each step the new weights go to the rollouts, and what a checkpoint needs of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from herd.model.parallel import ALONE, Parallel, local
from herd.model.parallel.layout import Shard
from herd.model.transformer import Transformer
from herd.rl.ranks import OnFirst
from herd.rl.rollouts import Rollouts
from herd.train.checkpoint import State
from herd.train.optimizer import Optimizer


class Publish:
    """Version v is the weights after v steps. A checkpoint keeps the `lag` versions before its own: groups that were
    under way by one of them are drawn again by it.

    Of several ranks each keeps its parts; they are joined as they are published, and the first rank alone, which has
    the rollouts, has the whole. So what is published does not depend on how the ranks share the model."""

    def __init__(self, model: Transformer, lag: int, parallel: Parallel = ALONE) -> None:
        self.model, self.lag, self.parallel = model, lag, parallel
        self.rollouts: Rollouts | None = None
        """Set on the first rank before `start`."""
        self.version = 0
        self._older: dict[int, dict[str, Tensor]] = {}
        """This rank's parts of the trained parameters of the versions before."""
        self._published = self._trained()
        self._on_first = OnFirst(parallel)

    def start(self) -> None:
        """Have the rollouts begin, with what the model is now."""
        older = {version: self.whole(trained) for version, trained in sorted(self._older.items())}
        self._published = self._trained()
        tensors = self.whole(self._published)
        if self.rollouts is not None:
            self.rollouts.start(self.version, tensors, older)

    def after_step(self, step: int, optimizer: Optimizer, *, updated: bool) -> dict[str, object]:
        """Publish the weights after this step."""
        if self.lag:
            self._older[self.version] = self._published
            for old in [version for version in self._older if version <= step - self.lag]:
                del self._older[old]
        self.version = step + 1
        self._published = self._trained()
        tensors, rollouts = self.whole(self._published), self.rollouts
        self._on_first(lambda: rollouts.publish(self.version, tensors) if rollouts is not None else None)
        return {}

    def _trained(self) -> dict[str, Tensor]:
        """Copies of this rank's parts of the trained parameters."""
        parameters = self.model.named_parameters()
        return {name: local(parameter.detach()).clone() for name, parameter in parameters if parameter.requires_grad}

    def whole(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All parameters with these ranks' parts of the trained ones: on the first rank, elsewhere nothing is kept."""
        found = {}
        for name, own in self.model.state_dict().items():
            joined = self.parallel.join(name, trained[name] if name in trained else local(own.detach()))
            if self.parallel.first:
                found[name] = joined
        return found

    def state_dict(self) -> State:
        """`lag` versions; zeros where there are not so many yet."""
        slots = {}
        for slot in range(self.lag):
            kept = self._older.get(self.version - 1 - slot)
            parts = kept or {name: torch.zeros_like(tensor) for name, tensor in self._published.items()}
            slots[str(slot)] = {name: self.parallel.checkpoint_view(name, part) for name, part in parts.items()}
        return {"version": torch.tensor(self.version), "older": slots}

    def load_state_dict(self, state: State) -> None:
        self.version = int(state["version"])
        self._older = {
            self.version - 1 - int(slot): {name: _part(tensor).clone() for name, tensor in kept.items()}
            for slot, kept in state["older"].items()
            if self.version - 1 - int(slot) >= 0
        }


def _part(tensor: Tensor) -> Tensor:
    return tensor.local if isinstance(tensor, Shard) else tensor
