"""Who draws the groups of a run: an engine with the environments, in this process, in another (herd.rl.process) or on
Ray (herd.rl.remote)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from herd.config import EngineConfig, RlConfig
from herd.engine.load import load
from herd.model.quantize import Scheme, quantize_model
from herd.plan.counts import usual_cache_bytes
from herd.rl.draw import Drawer
from herd.rl.environment import Environment, open_environment
from herd.rl.journal import Admitted
from herd.rl.prompts import Prompts
from herd.rl.record import Group


class WorkerLost(Exception):
    """What drew a group has ended before the group was there."""


class Worker(Protocol):
    """What `Rollouts` draws by."""

    async def draw(self, admitted: Admitted, drawn: Callable[[], None]) -> Group:
        """The group of an admission; `drawn` is called, on the event loop, once no engine is needed for it any more.
        Raises herd.rl.draw.Failure; WorkerLost where the group is to be drawn once more, by the same weights."""

    def load(self, version: int, tensors: Mapping[str, Tensor]) -> str:
        """Have all engines draw by these weights from now on; waits, and returns the digest of what they then hold.
        Any thread may call it."""

    def close(self) -> None:
        """End all engines; waits for no environment. Any thread may call it, and what others wait for then fails."""


class Here:
    """A drawer of this process."""

    def __init__(self, drawer: Drawer) -> None:
        self.drawer = drawer

    async def draw(self, admitted: Admitted, drawn: Callable[[], None]) -> Group:
        return await self.drawer.draw(admitted, drawn)

    def load(self, version: int, tensors: Mapping[str, Tensor]) -> str:
        return self.drawer.engine.update_weights(version, tensors)

    def close(self) -> None:
        self.drawer.engine.close()


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a drawer is opened by, anywhere."""

    config: RlConfig
    model: Path
    """Of its folder the engine takes the shape; weights come with `load`."""
    data: Path
    folder: Path
    """From which relative paths are meant."""
    dtype: torch.dtype
    num_threads: int
    """That torch computes on: with another number sums may differ in the last bit."""

    def environments(self) -> dict[str, Environment]:
        """By name, as opened here."""
        config = self.config
        return {spec: open_environment(spec, self.data, config.seed) for spec in config.shares()}

    def open(self, environments: Mapping[str, Environment]) -> Drawer:
        """A drawer with an engine of its own."""
        config, model = self.config, load(self.model, dtype=self.dtype)
        if config.quantize != "none":
            quantize_model(model.transformer, Scheme(name=config.quantize), model.config)
        shape, narrow = model.config, self.dtype.itemsize < torch.float32.itemsize
        slots = min(config.slots, config.groups * config.group_size)
        usual = usual_cache_bytes(shape, EngineConfig(max_num_seqs=slots), number_bytes=self.dtype.itemsize)
        return Drawer(
            model.engine(
                max_num_seqs=slots,
                kv_cache_memory_bytes=config.kv_cache_memory_bytes or usual,
                record_routes=config.replays(narrow=narrow) and any(map(shape.is_moe, range(shape.num_layers))),
            ),
            Prompts(model, environments, config.system_prompts),
            group_size=config.group_size,
            max_tokens=config.max_tokens,
            max_turns=config.max_turns,
            timeout_s=config.env_timeout_s,
            attempts=config.env_attempts,
        )
