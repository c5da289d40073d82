"""What one answer of the model was, token by token, and the group that it belongs to. No torch."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Span:
    """Drawn tokens from `begin` on, up to the next span, were drawn by the weights `version`."""

    begin: int
    """Index in `Rollout.ids`."""
    version: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """One answer to the prompt of a group. In an environment of several turns `ids` also has what the environment said,
    which is not drawn."""

    member: int
    """Its place in the group."""
    seed: int
    """Of its draws, by its place alone: the same in every attempt."""
    attempt: int
    """How often it had failed before."""
    prompt: np.ndarray
    """uint32, the tokens before the first that was drawn."""
    ids: np.ndarray
    """uint32, all tokens after the prompt, end tokens included."""
    drawn: np.ndarray
    """bool, which of `ids` the model drew; the others are the environment's."""
    logprobs: np.ndarray
    """float32, natural log-probability of each drawn token in the distribution that it was drawn from; else 0."""
    spans: tuple[Span, ...]
    finish: str
    """`stop` or `length`, as the engine has it."""
    text: str
    """The last answer, as the environment read it."""
    reward: float
    parts: dict[str, float] = field(default_factory=dict)
    """What the reward is made of, by name."""
    env_s: float = 0.0
    routes: np.ndarray | None = None
    """uint8 [tokens of prompt and ids, mixture layers * top_k], the experts of each token in the engine, where they are
    recorded; 255 of tokens that it did not compute, as the last one."""
    """Seconds that the environment took."""

    @property
    def truncated(self) -> bool:
        """Whether it was ended by its length."""
        return self.finish == "length"

    def versions(self) -> np.ndarray:
        """int64, the version of each of `ids`."""
        begins = [*(span.begin for span in self.spans), len(self.ids)]
        lengths = np.diff(begins)
        return np.repeat(np.array([span.version for span in self.spans], dtype=np.int64), lengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """All answers to one prompt."""

    ordinal: int
    """Given at admission, and never again."""
    environment: str
    cell: str
    """The kind of task within the environment, of one difficulty."""
    index: int
    """Which task of the cell."""
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> np.ndarray:
        """float64 [members]."""
        return np.array([one.reward for one in self.rollouts])

    @property
    def has_signal(self) -> bool:
        """Whether its members' rewards differ. By equality: a small standard deviation may be rounding."""
        return len({one.reward for one in self.rollouts}) > 1

    @property
    def num_drawn(self) -> int:
        """Tokens that the model drew."""
        return sum(int(one.drawn.sum()) for one in self.rollouts)
