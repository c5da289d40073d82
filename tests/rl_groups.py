"""Groups for tests of reinforcement learning."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from herd.rl.record import Group, Rollout, Span


def rollout(
    member: int = 0, *, num_tokens: int = 20, num_prompt: int = 20, reward: float = 0.0, **other: Any
) -> Rollout:
    """A rollout of one turn whose tokens follow from its place."""
    rng = np.random.default_rng(member)
    return Rollout(
        **{
            "member": member,
            "seed": member,
            "attempt": 0,
            "prompt": np.arange(num_prompt, dtype=np.uint32),
            "ids": rng.integers(0, 200_000, num_tokens).astype(np.uint32),
            "drawn": np.ones(num_tokens, bool),
            "logprobs": -rng.random(num_tokens).astype(np.float32),
            "spans": (Span(begin=0, version=0),),
            "finish": "stop",
            "text": "7 8 9",
            "reward": reward,
            **other,
        }
    )


def group(ordinal: int = 0, rewards: Sequence[float] = (0.0, 1.0), *, cell: str = "n=3", **other: Any) -> Group:
    """A group of the environment `digits` with one rollout for each reward."""
    rollouts = tuple(rollout(member, reward=reward, **other) for member, reward in enumerate(rewards))
    return Group(ordinal=ordinal, environment="digits", cell=cell, index=ordinal, rollouts=rollouts)
