"""Settings of online reinforcement learning."""

from dataclasses import dataclass

from herd.config.ranges import Checked, PartialShare, Share, TrueShare
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig(Checked):
    """Which tasks are dealt: of each environment, more of the cells whose pass rate is near a target."""

    uniform: bool = False
    """Deal all cells of an environment equally often: the control that a curriculum is compared with."""
    start_pass_rate: TrueShare = 0.5
    """The target at the start of the run."""
    end_pass_rate: TrueShare = 0.3
    """The target at its end; in between it falls linearly."""
    solved_pass_rate: Share = 0.95
    """Cells above it are solved, and dealt by `explore` and `revisit` alone."""
    explore: Share = 0.1
    """Share of an environment's groups that is spread over all its cells, so that none is given up for good."""
    revisit: Share = 0.05
    """Share that is spread over its solved cells, so that they are not forgotten."""
    forgetting: PartialShare = 0.9
    """What a step leaves of the weight of the answers before it, as the model changes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.explore + self.revisit >= 1:
            raise HerdError(
                f"explore={self.explore} and revisit={self.revisit} leave nothing for the cells near the target: lower "
                "one of them, or set uniform=true"
            )

    def target_at(self, progress: float) -> float:
        """The pass rate that is aimed at when so much of the run, from 0 to 1, is over."""
        return self.start_pass_rate + progress * (self.end_pass_rate - self.start_pass_rate)
