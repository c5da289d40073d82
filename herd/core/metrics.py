"""Figures that several batches or ranks join in.

They may be tensors of one number on any device: the loop reads those of a step together, as each reading waits for the
device.
"""

from dataclasses import dataclass

from torch import Tensor

Number = float | Tensor


@dataclass(frozen=True)
class Mean:
    """A mean that is computed later, of what was counted in all parts and on all ranks."""

    total: Number
    count: float

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        return float(self.total) / self.count
