"""A share against its control, with the interval of their ratio."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.core.statistics import share
from herd.core.streams import stream


@dataclass(frozen=True, kw_only=True)
class Group:
    """One language's answers: `hit_PP[i, j]` is whether the answer to picture j is right for picture i.

    The diagonal is the score. Off the diagonal every picture is replaced by another one: the mean over all of it is
    the mean score over all rotations of the pictures, each a permutation without a fixed point.
    """

    pictures: tuple[str, ...]
    hit_PP: NDArray[np.bool_]

    @property
    def hits(self) -> int:
        return int(np.trace(self.hit_PP))

    @property
    def control(self) -> float:
        """Share of right answers with the pictures shuffled."""
        count = len(self.pictures)
        return float(self.hit_PP.sum() - np.trace(self.hit_PP)) / (count * (count - 1)) if count > 1 else 0.0


RATIO_RULE = (
    "score / control over all languages. The control is the mean over every rotation of the pictures (each picture "
    "replaced by another of the split). A control below one hit in as many questions as were asked counts as one hit, "
    "so a ratio against a control of 0 is a lower bound. Interval: percentile bootstrap over pictures, all languages "
    "of a picture together, 1000 draws."
)


def ratio_to_control(groups: Sequence[Group], *, seed: int, draws: int = 1000) -> dict[str, Any]:
    """Score, control and their ratio with its 95 % interval, by RATIO_RULE."""
    names = sorted({picture for group in groups for picture in group.pictures})
    place = {name: index for index, name in enumerate(names)}
    one = _ratio(groups, np.ones((1, len(names))), place)
    rng = stream(seed, "evaluate", "bootstrap")
    drawn_BP = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws).astype(np.float64)
    score_B, control_B, ratio_B = _ratio(groups, drawn_BP, place)
    low, high = np.quantile(ratio_B, [0.025, 0.975])
    (score,), (control,), (ratio,) = one
    return {
        **share(sum(group.hits for group in groups), sum(len(group.pictures) for group in groups)),
        "control": float(control),
        "ratio": float(ratio),
        "ratio_low": float(low),
        "ratio_high": float(high),
    }


def _ratio(
    groups: Sequence[Group], weight_BP: NDArray[np.float64], place: dict[str, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Score, control and ratio for each row of picture weights."""
    asked_B = np.zeros(len(weight_BP))
    hits_B, control_hits_B = asked_B.copy(), asked_B.copy()
    for group in groups:
        weight_BQ = weight_BP[:, [place[picture] for picture in group.pictures]]
        hit_QQ = group.hit_PP.astype(np.float64)
        own_Q = np.diag(hit_QQ)
        pairs_B = weight_BQ.sum(1) ** 2 - (weight_BQ**2).sum(1)
        pair_hits_B = ((weight_BQ @ hit_QQ) * weight_BQ).sum(1) - weight_BQ**2 @ own_Q
        asked_B += weight_BQ.sum(1)
        hits_B += weight_BQ @ own_Q
        control_hits_B += np.where(pairs_B > 0, pair_hits_B / np.maximum(pairs_B, 1), 0) * weight_BQ.sum(1)
    asked_B = np.maximum(asked_B, 1)
    return hits_B / asked_B, control_hits_B / asked_B, hits_B / np.maximum(control_hits_B, 1.0)
