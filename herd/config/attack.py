"""The settings of `herd guard attack`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from herd.config.ranges import Checked, Count, Positive, Range, Seed


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Checked):
    """How a target is attacked, in one run."""

    mode: Literal["both", "alone", "combined"] = "both"
    """alone: a conversation for each attack; combined: one with all of them; both: one after the other."""
    attacks: tuple[str, ...] = ()
    """Names, such as dual-response; all seven if not given."""
    categories: tuple[str, ...] = ()
    """Of the goals, such as S1 S10; all if not given."""
    num_goals: Count | None = None
    """Goals at most, from the categories in turn; all if not given."""
    attempts: Count = 1
    """Conversations for each goal and attack: the k of ASR@k."""
    max_turns: Count = 5
    """Turns of a conversation."""
    seed: Seed = 0
    """Of the attacker, the target and the judge."""
    temperature: Annotated[float, Range(0, 2)] = 0.0
    """Of the target; with several attempts above 0, or they differ by the attacker alone."""
    max_tokens: Count = 256
    """Longest reply of the target."""
    timeout_s: Positive = 60.0
    """Time for one reply."""
    at_once: Count = 8
    """Conversations at a time."""
