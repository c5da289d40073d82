"""What is recorded of a step, from the groups that were drawn and those that are trained; and what is alarming in it.

Pass rates, lengths and truncation are of all groups that were drawn: those that are trained are chosen by their
rewards. No torch.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from herd.rl.advantages import pass_at_k
from herd.rl.record import Group

Grader = Callable[[Group, str], float]
"""The reward that a text has as the answer to the prompt of a group."""

MOST_TRUNCATED = 0.2
LEAST_ENTROPY = 0.1
"""Of what it was at the start."""
LEAST_FILLED = 0.5
"""Of the groups that are asked for."""
WINDOW = 5
"""Steps that an alarm averages over."""


def drawing_facts(drawn: Sequence[Group], k: int) -> dict[str, float]:
    """Of the groups that were drawn for a step, at least one, those without signal included. `k`: of pass@k."""
    rollouts = [one for group in drawn for one in group.rollouts]
    lengths = np.array([int(one.drawn.sum()) for one in rollouts])
    right = [(_right(group.rewards), len(group.rollouts)) for group in drawn]
    return {
        "reward": float(np.mean([group.rewards.mean() for group in drawn])),
        "pass@1": float(np.mean([pass_at_k(passes, n, 1) for passes, n in right])),
        f"pass@{k}": float(np.mean([pass_at_k(passes, n, k) for passes, n in right])),
        "with_signal": float(np.mean([group.has_signal for group in drawn])),
        "truncated": float(np.mean([one.truncated for one in rollouts])),
        "drawn_tokens": float(lengths.sum()),
        "length": float(lengths.mean()),
        "length_max": float(lengths.max()),
        "env_s": float(np.mean([one.env_s for one in rollouts])),
        "entropy": _entropy(drawn),
    }


def training_facts(picked: Sequence[Group], num_drawn_tokens: int, version: int, num_asked: int) -> dict[str, float]:
    """Of the groups that a step trains. `num_drawn_tokens`: of all groups that were drawn to have them. `version`: of
    the weights that the step begins with. `num_asked`: groups that a step should have."""
    ages = [version - one.versions()[one.drawn] for group in picked for one in group.rollouts]
    ages_N = np.concatenate(ages)
    return {
        "filled": len(picked) / num_asked,
        "trained_tokens": float(len(ages_N)),
        "drawn_per_trained": num_drawn_tokens / len(ages_N),
        "age": float(ages_N.mean()),
        "age_max": float(ages_N.max()),
    }


def shuffled_facts(drawn: Sequence[Group], grade: Grader, k: int) -> dict[str, float]:
    """pass@1 and pass@k where each answer is graded under the prompt of another group of its cell: what guessing
    without a look at the prompt would get. Groups that are alone in their cell are left out; {} if all are.

    Member m of group i is given to group i + 1 + m mod (M-1) of the M groups of the cell, counted in a circle: each
    answer is used once, none in its own group, and a group's are of many.
    """
    cells: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in drawn:
        cells[group.environment, group.cell].append(group)
    found: list[tuple[int, int]] = []
    for groups in cells.values():
        given: dict[int, list[str]] = defaultdict(list)
        for place, group in enumerate(groups):
            for member, rollout in enumerate(group.rollouts):
                if len(groups) > 1:
                    given[(place + 1 + member % (len(groups) - 1)) % len(groups)].append(rollout.text)
        for place, texts in given.items():
            rewards = np.array([grade(groups[place], text) for text in texts])
            found.append((_right(rewards), len(rewards)))
    if not found:
        return {}
    return {
        f"pass@{number}_shuffled": float(np.mean([pass_at_k(right, n, number) for right, n in found]))
        for number in (1, k)
    }


def alarms(steps: Sequence[Mapping[str, float]]) -> list[str]:
    """What is alarming in the facts of all steps so far, a line each, from two windows of steps on. The effective
    sample size is not: it stays near 1 while a run is lost to truncated answers."""
    if len(steps) < 2 * WINDOW:
        return []
    lines = []
    before, now = _mean(steps[-2 * WINDOW : -WINDOW], "truncated"), _mean(steps[-WINDOW:], "truncated")
    if now > max(MOST_TRUNCATED, before):
        lines.append(
            f"{now:.0%} of the answers are cut off at their limit, {before:.0%} were {WINDOW} steps before: raise "
            "the limit or lower the learning rate"
        )
    first, now = _mean(steps[:WINDOW], "entropy"), _mean(steps[-WINDOW:], "entropy")
    if now < LEAST_ENTROPY * first:
        lines.append(
            f"the entropy has fallen from {first:.3g} to {now:.3g} nats a token: answers hardly differ any more; lower "
            "the learning rate or the number of steps"
        )
    if (filled := _mean(steps[-WINDOW:], "filled")) < LEAST_FILLED:
        lines.append(
            f"steps are trained on {filled:.0%} of the groups that are asked for, as the others have answers that are "
            "all worth the same: give tasks that the model sometimes gets right"
        )
    return lines


def _entropy(groups: Sequence[Group]) -> float:
    """The mean of -log p over the drawn tokens: an unbiased estimate of the entropy of what they were drawn from."""
    return -float(np.concatenate([one.logprobs[one.drawn] for group in groups for one in group.rollouts]).mean())


def _right(rewards: np.ndarray) -> int:
    return int((rewards == 1).sum())


def _mean(steps: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([one[name] for one in steps]))
