"""Intervals for shares, for a mean over documents, and for a share against its control; rank correlation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.core.streams import stream

Z_95 = 1.959963984540054


def wilson(hits: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share; (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    share, z2 = hits / count, Z_95**2
    centre = share + z2 / (2 * count)
    reach = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    # Rounding must not push an end past the share itself, where the interval touches 0 or 1.
    return max(0.0, min(share, (centre - reach) / scale)), min(1.0, max(share, (centre + reach) / scale))


def share(hits: int, count: int) -> dict[str, Any]:
    """A counted share with its interval, as results.json keeps it."""
    low, high = wilson(hits, count)
    return {"count": count, "hits": hits, "share": hits / count if count else None, "low": low, "high": high}


def mean_interval(
    sums: Sequence[float], sizes: Sequence[float], *, seed: int, draws: int = 1000
) -> tuple[float, float] | None:
    """The 95 % interval of sum(sums) / sum(sizes) over documents that have both: a percentile bootstrap over the
    documents. None for a single one, which does not show how documents differ."""
    count = len(sums)
    if count < 2:
        return None
    rng = stream(seed, "evaluate", "bootstrap of documents")
    drawn_BN = rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    low, high = np.quantile(drawn_BN @ np.asarray(sums) / (drawn_BN @ np.asarray(sizes)), [0.025, 0.975])
    return float(low), float(high)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank. 0 where either does not vary."""

    def ranks(values: Sequence[float]) -> NDArray[np.float64]:
        _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        ranked: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
        return ranked - ranked.mean()

    one, other = ranks(first), ranks(second)
    size = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / size if size else 0.0


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
