"""Settings of the policy gradient: how it is corrected for tokens that another policy drew."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from herd.config.ranges import Checked, Positive, Share, Weight
from herd.errors import HerdError

CorrectionName = Literal["none", "tis", "aipo", "clip", "cispo", "gspo", "mis", "icepop"]

BOUNDS: dict[CorrectionName, tuple[float, float]] = {
    "none": (0.0, 1e12),
    "tis": (0.0, 2.0),
    "aipo": (0.0, 4.0),
    "clip": (0.8, 1.28),
    "cispo": (0.0, 5.0),
    "gspo": (1 - 3e-4, 1 + 4e-4),
    "mis": (0.0, 2.0),
    "icepop": (0.5, 5.0),
}
"""The bounds of the ratio of each correction that are used if not given. Those of `tis`, `clip`, `gspo` and `icepop`
are their papers'; that of `cispo` is TRL's suggestion; those of `aipo` and `mis` are ours."""


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig(Checked):
    """What the gradient of a token is multiplied by, given the ratio of its probability now to that at which it was
    drawn: see herd.rl.corrections for the formulas."""

    SHORT: ClassVar[str] = "name"
    """The field that the config's own name stands for: `correction = "clip"`."""
    name: CorrectionName = "tis"
    """`none`: 1; `tis`, `aipo`: the ratio, at most `high`; `cispo`: the ratio within the bounds; `clip`: PPO's clipped
    objective; `gspo`: the same by whole answers; `mis`, `icepop`: the ratio, and 0 outside the bounds, by whole answers
    or by tokens."""
    low: Weight | None = None
    """Lower bound of the ratio; the correction's own if not given."""
    high: Positive | None = None
    """Upper bound of the ratio; the correction's own if not given."""
    mask: Share = 0.2
    """A token is left out where its probability has moved further than this in the direction in which the gradient
    pushes it (DPPO); 1: none is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.bounds
        if low > high:
            raise HerdError(f"the ratio's bounds low={low} and high={high} of {self.name} leave nothing: lower low")

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the ratio."""
        low, high = BOUNDS[self.name]
        return low if self.low is None else self.low, high if self.high is None else self.high


@dataclass(frozen=True, kw_only=True)
class PolicyLossConfig(Checked):
    """The loss of online reinforcement learning, see herd.rl.loss."""

    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    drift_penalty: Weight = 1e-3
    """Weight of (log ratio)^2 / 2, which pulls the policy towards the one that drew the token."""
    reference_kl: Weight = 0.0
    """Weight of the KL divergence to the reference model, taken off each token's advantage."""
