"""Intervals for shares and for a mean over documents; rank correlation."""

import math
from collections.abc import Sequence
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
