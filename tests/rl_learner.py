"""A simulated learner: cells whose pass rates rise where groups with signal are trained."""

import numpy as np

from herd.config.rl import CurriculumConfig
from herd.rl.curriculum import Curriculum


def groups_to_learn(
    config: CurriculumConfig,
    seed: int,
    *,
    num_waves: int,
    num_cells: int = 12,
    slope: float = 0.9,
    transfer: float = 0.5,
    rate: float = 0.6,
    spread: float = 0.7,
    goal: float = 0.5,
) -> tuple[int, int]:
    """Groups drawn, and steps, until the cells that began below 0.1 pass `goal` of their tasks; at most 600 steps.

    The logit of cell c begins at 2.5 - slope c + noise, that of a task deviates by `spread`. A step trains 16 groups of
    8 with signal; for each without, the same curriculum deals one more, and both count as drawn. A trained group with
    the share q of passes raises its cell by rate/16 of 4 q (1 - q), as a policy gradient does, and a cell at distance d
    by transfer^d of that.
    """
    rng = np.random.default_rng(seed)
    names = [f"n={place}" for place in range(num_cells)]
    logits = 2.5 - slope * np.arange(num_cells) + rng.normal(0, 0.3, num_cells)
    hard = _sigmoid(logits) < 0.1
    helps = transfer ** np.abs(np.subtract.outer(np.arange(num_cells), np.arange(num_cells)))
    curriculum = Curriculum({"digits": names}, {"digits": 1}, config)
    drawn = 0
    for step in range(600):
        kept = list[tuple[int, float]]()
        for _ in range(20):  # then the step has fewer
            for _, name, _ in curriculum.deal(16 - len(kept), seed, min(step, num_waves - 1), num_waves):
                cell = names.index(name)
                passes = int(rng.binomial(8, _sigmoid(logits[cell] + rng.normal(0, spread))))
                curriculum.update("digits", name, passes, 8)
                drawn += 1
                if 0 < passes < 8:
                    kept.append((cell, passes / 8))
        curriculum.end_step()
        for cell, share in kept:
            logits += rate / 16 * 4 * share * (1 - share) * helps[cell]
        if _sigmoid(logits[hard]).mean() >= goal:
            return drawn, step + 1
    raise AssertionError("not learned")


def _sigmoid(logits):
    return 1 / (1 + np.exp(-logits))
