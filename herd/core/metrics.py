"""Figures that several batches or ranks join in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """A mean that is told later: of what was counted everywhere."""

    total: float
    count: float

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        return self.total / self.count
