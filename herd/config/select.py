"""The settings of `herd select`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from herd.config.ranges import Checked, Count, Range, Seed
from herd.config.training import HOW_IT_RUNS


@dataclass(frozen=True, kw_only=True)
class SelectConfig(Checked):
    """Which chats are worth training on: the hardest that can be learnt."""

    # Folders are compared by their hashes, as parents are.
    by: tuple[str, ...] = field(default=(), metadata=HOW_IT_RUNS)
    """Model folders whose answers give the difficulty: two or three earlier checkpoints of what is to be trained."""
    teacher: str = field(default="", metadata=HOW_IT_RUNS)
    """Model folder of a better model: what it never answers right is not learnable, and not kept; none if not given."""
    judge: str = field(default="", metadata=HOW_IT_RUNS)
    """Model folder that is asked how hard the chats without a right answer are; if not given, their answers'
    log-probabilities decide."""
    keep: Annotated[float, Range(0, 1, above=True)] = 0.5
    """Share of the scored chats of each kind and language that is kept."""
    num_answers: Count = 16
    """Answers that each model draws to each question that has a right answer."""
    max_tokens: Count = 64
    """Longest answer, in tokens."""
    seed: Seed = 0
    """Of the answers, and of the order of chats that are equally hard."""

    def inputs(self) -> dict[str, Path]:
        """The model folders, by what they are for."""
        found = {f"by {number}": folder for number, folder in enumerate(self.by, 1)}
        found |= {"teacher": self.teacher} if self.teacher else {}
        found |= {"judge": self.judge} if self.judge else {}
        return {role: Path(folder).expanduser() for role, folder in found.items()}
