"""Figures that several batches or ranks join in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """A mean that is computed later, of what was counted in all parts and on all ranks."""

    total: float
    count: float

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        return self.total / self.count
