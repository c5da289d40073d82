"""Shares of pairs, shares measured by a judge that errs, and what a claim about a share needs.

All intervals are of 95 %. Sources: Newcombe, Statistics in Medicine 17 (1998), 2635 (method 10: two shares of the same
pairs); Rogan and Gladen, American Journal of Epidemiology 107 (1978), 71, with the interval of Lang and Reiczigel,
Preventive Veterinary Medicine 113 (2014), 13 (a share behind a judge of measured error rates).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from herd.core.statistics import Z_95, wilson
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Outcomes of pairs, each yes or no on both sides."""

    both: int
    first: int
    """Yes on the first side alone."""
    second: int
    neither: int

    @property
    def count(self) -> int:
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """The share of yes on the second side minus that on the first; 0 of nothing."""
        return (self.second - self.first) / self.count if self.count else 0.0

    def interval(self) -> tuple[float, float]:
        """Of the difference, by Newcombe's method 10; (-1, 1) of nothing."""
        if not self.count:
            return -1.0, 1.0
        ones, twos = self.both + self.second, self.both + self.first
        one, two = ones / self.count, twos / self.count
        (low1, high1), (low2, high2) = wilson(ones, self.count), wilson(twos, self.count)
        product = ones * (self.count - ones) * twos * (self.count - twos)
        phi = 0.0
        if product:
            cross = self.both * self.neither - self.first * self.second
            # Newcombe's correction for continuity, where the two sides go together.
            phi = (max(cross - self.count / 2, 0.0) if cross > 0 else cross) / math.sqrt(product)
        down = (one - low1) ** 2 - 2 * phi * (one - low1) * (high2 - two) + (high2 - two) ** 2
        up = (high1 - one) ** 2 - 2 * phi * (high1 - one) * (two - low2) + (two - low2) ** 2
        return self.difference - math.sqrt(max(0.0, down)), self.difference + math.sqrt(max(0.0, up))

    def p_value(self) -> float:
        """Of the exact McNemar test, two-sided: how likely pairs that differ are split at least so unevenly where no
        side is preferred."""
        differing, less = self.first + self.second, min(self.first, self.second)
        if not differing:
            return 1.0
        # The counts are added as integers: no share of 2^n underflows.
        return min(1.0, 2 * sum(math.comb(differing, k) for k in range(less + 1)) / 2**differing)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, each multiplied so that all together err with 5 % where each is compared with 5 %."""
    adjusted, last = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        last = adjusted[i] = min(1.0, max(last, (len(p_values) - rank) * p_values[i]))
    return adjusted


def most_hits(count: int, below: float) -> int | None:
    """The most hits of `count` whose share is below `below` with its whole Wilson interval; None where not even none
    are enough."""
    low, high = -1, count
    while low < high:  # the upper end grows with the hits
        middle = (low + high + 1) // 2
        if wilson(middle, count)[1] < below:
            low = middle
        else:
            high = middle - 1
    return None if low < 0 else low


def least_count(below: float) -> int:
    """The least count of which no hit shows a share below `below`."""
    if not 0 < below < 1:
        raise HerdError(f"below={below} must be in (0, 1)")
    return math.floor(Z_95**2 * (1 - below) / below) + 1


@dataclass(frozen=True, kw_only=True)
class JudgeErrors:
    """What a judge found of items that people had labelled."""

    hits: int
    positives: int
    """Items that have what is looked for; `hits` of them were found."""
    rejections: int
    negatives: int
    """Items that have it not; `rejections` of them were left alone."""
    source: str
    """Which items those are."""

    def __post_init__(self) -> None:
        if not (0 <= self.hits <= self.positives and 0 <= self.rejections <= self.negatives):
            raise HerdError(f"{self.hits} of {self.positives} and {self.rejections} of {self.negatives} are no counts")
        if not self.positives or not self.negatives:
            raise HerdError("a judge is measured on labelled items of both kinds: refused and answered")
        if self.youden <= 0:
            raise HerdError(
                f"the judge is no better than chance on {self.source}: it finds {self.sensitivity:.0%} and wrongly "
                f"flags {1 - self.specificity:.0%}"
            )

    @property
    def sensitivity(self) -> float:
        return self.hits / self.positives

    @property
    def specificity(self) -> float:
        return self.rejections / self.negatives

    @property
    def accuracy(self) -> float:
        return (self.hits + self.rejections) / (self.positives + self.negatives)

    @property
    def youden(self) -> float:
        """Sensitivity + specificity - 1: by what an observed difference of two shares is smaller than the true one."""
        return self.sensitivity + self.specificity - 1

    def youden_interval(self) -> tuple[float, float]:
        """Of `youden`, from the Wilson intervals of its two parts; at least a hundredth."""
        (low1, high1), (low2, high2) = wilson(self.hits, self.positives), wilson(self.rejections, self.negatives)
        down = math.hypot(self.sensitivity - low1, self.specificity - low2)
        up = math.hypot(high1 - self.sensitivity, high2 - self.specificity)
        return max(0.01, self.youden - down), max(0.01, min(1.0, self.youden + up))

    def share(self, hits: int, count: int) -> tuple[float, float, float]:
        """The true share behind `hits` of `count` as the judge sees them, with its interval; (0, 0, 1) of nothing."""
        if not count:
            return 0.0, 0.0, 1.0
        share = (hits / count + self.specificity - 1) / self.youden
        seen, size = (hits + Z_95**2 / 2) / (count + Z_95**2), count + Z_95**2
        found, num_found = (self.hits + 1) / (self.positives + 2), self.positives + 2
        left, num_left = (self.rejections + 1) / (self.negatives + 2), self.negatives + 2
        spread = found + left - 1
        if spread <= 0:  # so few labels that the judge may be no better than chance
            return min(1.0, max(0.0, share)), 0.0, 1.0
        middle = (seen + left - 1) / spread
        of_found, of_left = found * (1 - found) / num_found, left * (1 - left) / num_left
        shift = 2 * Z_95**2 * (middle * of_found - (1 - middle) * of_left)
        variance = (seen * (1 - seen) / size + middle**2 * of_found + (1 - middle) ** 2 * of_left) / spread**2
        reach = Z_95 * math.sqrt(variance)
        low, high = (min(1.0, max(0.0, end)) for end in (middle + shift - reach, middle + shift + reach))
        # Where the estimate is beyond 0 or 1, the share is that end, which the interval then has.
        share = min(1.0, max(0.0, share))
        return share, min(low, share), max(high, share)

    def difference(self, value: float, low: float, high: float) -> tuple[float, float, float]:
        """The true difference behind an observed one with its interval, where the judge errs alike on both sides:
        divided by `youden`, whose own interval widens it."""
        least, most = self.youden_interval()
        lows, highs = (low / least, low / most), (high / least, high / most)
        return max(-1.0, min(1.0, value / self.youden)), max(-1.0, min(lows)), min(1.0, max(highs))
