"""What a simulated run of reinforcement learning is made of: groups, a machine, a schedule. See rl_sim.py."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

import numpy as np

from herd.core.streams import stream
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class GroupWork:
    """What one group costs, by member."""

    tokens: tuple[float, ...]
    env_s: tuple[float, ...]
    """Seconds in the environment after the last token; they take no core."""
    has_signal: bool = True


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Random groups, each a function of its number: schedules are compared on the same ones."""

    group_size: int
    mean_tokens: float
    """Of an answer, before it is cut."""
    token_sigma: float = 0.0
    """Of the logarithm of the lengths within a group, which is normal."""
    group_sigma: float = 0.0
    """Of what a group's lengths have in common."""
    max_tokens: float = inf
    latency_s: float = 0.0
    """Median of the environment's latency, which is lognormal."""
    latency_sigma: float = 1.0
    latency_by_length: float = 0.0
    """Power of the answer's length that the latency grows with."""
    keep: float = 1.0
    """Share of the groups that have signal."""
    seed: int = 0

    def __call__(self, ordinal: int) -> GroupWork:
        draw = stream(self.seed, "group", ordinal)
        normal = draw.standard_normal((2, self.group_size))
        has_signal, common = bool(draw.random() < self.keep), draw.standard_normal()
        spread = (self.token_sigma**2 + self.group_sigma**2) / 2
        tokens = self.mean_tokens * np.exp(self.token_sigma * normal[0] + self.group_sigma * common - spread)
        tokens = np.clip(tokens, 1.0, self.max_tokens)
        env_s = self.latency_s * np.exp(self.latency_sigma * normal[1])
        env_s *= (tokens / self.mean_tokens) ** self.latency_by_length
        return GroupWork(tokens=tuple(tokens.tolist()), env_s=tuple(env_s.tolist()), has_signal=has_signal)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Service times."""

    fixed_s: float
    """Of an engine step, however many rollouts it has: weights read, launches."""
    token_s: float
    """Of each rollout in an engine step: its products, its cache read."""
    train_s: float
    """Of P groups."""
    prefill_s: float = 0.0
    """Of a prompt. A group shares it, unless its batch is padded."""
    publish_s: float = 0.0
    """Of new weights: for the trainer after a step, for the engine when it takes them."""
    slots: float = inf
    """Rollouts that run at once (`max_num_seqs`)."""
    alone: float = 1.0
    """Speed of engine or trainer while the other one idles. 1: each has its own part of the machine for good. Where
    they share c cores that scale with efficiency e: c * e, and while both work each has 1."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Who is admitted when, and what is trained next; see rl_sim.py."""

    kind: Literal["pinned", "inflight"]
    groups_per_step: int
    lag: float
    wave: int = 0
    """Pinned: groups admitted for a step, of which those with signal are trained."""
    window: int = 1
    """In flight: groups from the oldest on that is not judged; younger ones must wait."""
    max_groups: float = inf
    """Groups in the engine and the environment at once."""
    padded: bool = False
    """Static batches: a group's rollouts all run as long as its longest, each with its own prompt."""
    publish_every: int = 1
    """In flight: steps between two versions. Groups count as under way until the version after their step."""

    def __post_init__(self) -> None:
        if self.kind == "pinned" and (self.lag % 1 or self.publish_every > 1 or self.wave < 1):
            raise HerdError(f"{self}: a pinned schedule has a whole lag, a wave of 1 or more and a version each step")
        if min(self.groups_per_step, self.window, self.publish_every, self.max_groups) < 1 or self.lag < 0:
            raise HerdError(f"{self}: groups, window and steps a version are 1 or more, the lag is 0 or more")

    @property
    def capacity(self) -> int:
        """In flight: most groups that are under way."""
        return int((self.lag + 1) * self.groups_per_step * self.publish_every)

    @property
    def max_age(self) -> int:
        """Steps between admission and training, at most; where every step has its version."""
        late = ceil((self.window - 1) / self.groups_per_step) if self.kind == "inflight" else 0
        return int(self.lag) + late


def pinned(groups_per_step: int, lag: int, *, keep: float = 1.0) -> Schedule:
    """Waves of as many groups as are expected to give a step's."""
    return Schedule(kind="pinned", groups_per_step=groups_per_step, lag=lag, wave=ceil(groups_per_step / keep))


def strong(groups_per_step: int, *, keep: float = 1.0) -> Schedule:
    """Synchronous at its best: all groups at once, continuous batching, the slowest waited for, then training."""
    return pinned(groups_per_step, 0, keep=keep)


def naive(groups_per_step: int, *, keep: float = 1.0) -> Schedule:
    """Synchronous at its worst: one prompt after the other, static batches, each waited for."""
    wave = ceil(groups_per_step / keep)
    return Schedule(kind="pinned", groups_per_step=groups_per_step, lag=0, wave=wave, max_groups=1, padded=True)


def inflight(groups_per_step: int, lag: float, *, window: int | None = None) -> Schedule:
    """`window`: .3 of the groups that may be under way, as TitanRL's and MiniMax's (arXiv 2605.26494), if not given."""
    window = max(1, int(0.3 * (lag + 1) * groups_per_step)) if window is None else window
    return Schedule(kind="inflight", groups_per_step=groups_per_step, lag=lag, window=window)
