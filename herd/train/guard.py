"""Which steps are outliers: their update is left out, so that a poisoned batch does no harm.

A loss or gradient norm that is not a number always is one. Else it is one if it lies more than `sigmas` above where
the trend of the last `window` updates leads; a norm by its logarithm, as it varies by factors. The window holds only
updates that were made, so a spike does not make the next one usual.

The trend is a line: its slope the median of the slopes over half a window, its height the median. A loss that fell fast
and now levels off lies above its line, so nothing below the median of the last few updates is expected. Sigma is taken
from the 90th percentile of the differences of neighbours, which a bend of the trend does not widen, nor do strays that
came in before the window knew better; tails heavier than a normal distribution's do. With several ranks, judge what is
summed over all of them.
"""

import math

import numpy as np
import torch

from herd.config import GuardConfig
from herd.train.checkpoint import State

FIRST = 16
"""Updates that are made before any is measured by them."""
LAST = 4
"""Updates below whose median nothing is expected."""
NORMAL_90 = 1.645
"""The 90th percentile of |x|, x standard normal."""
FLOOR = {"loss": 0.005, "gradient norm": 0.05}
"""Least sigma: of a loss relative to its trend, of a norm as a logarithm. What is so even needs no guard."""


class Guard:
    """Judges the steps of one run; its window is part of the checkpoints."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.window: dict[str, list[float]] = {name: [] for name in FLOOR}
        self.in_a_row = 0
        """Outliers since the last update."""
        self.num_skipped = 0
        """Outliers in the whole run."""
        self.trouble: str | None = None
        """Why the run cannot go on by itself, once outliers come in a row."""

    def judge(self, loss: float, norm: float) -> str | None:
        """Why the step is an outlier; None if its update is to be made."""
        reason = self._reason(loss, norm)
        if reason is None:
            self.in_a_row = 0
            for name, value in (("loss", loss), ("gradient norm", math.log(max(norm, 1e-30)))):
                self.window[name] = [*self.window[name], value][-self.config.window :]
            return None
        self.in_a_row += 1
        self.num_skipped += 1
        if self.in_a_row >= self.config.patience:
            self.trouble = f"{self.in_a_row} steps in a row were outliers, the last as its {reason}"
            # Who then says the command again means it: what is usual is learnt anew.
            self.in_a_row, self.window = 0, {name: [] for name in FLOOR}
        return reason

    def _reason(self, loss: float, norm: float) -> str | None:
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        if not self.config.sigmas:
            return None
        trend, sigma = expected(self.window["loss"], "loss")
        if loss > trend + self.config.sigmas * sigma:
            return f"loss {loss:.4g} is {(loss - trend) / sigma:.0f} sigma above {trend:.4g}"
        trend, sigma = expected(self.window["gradient norm"], "gradient norm")
        above = (math.log(max(norm, 1e-30)) - trend) / sigma
        if above > self.config.sigmas:
            return f"gradient norm {norm:.4g} is {above:.0f} sigma above {math.exp(trend):.4g}"
        return None

    def state_dict(self) -> State:
        """The window, filled up with NaN, and the counts."""
        rows = {name: values + [math.nan] * (self.config.window - len(values)) for name, values in self.window.items()}
        return {
            "window": {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()},
            "counts": torch.tensor([self.in_a_row, self.num_skipped]),
        }

    def load_state_dict(self, state: State) -> None:
        self.window = {name: row[~row.isnan()].tolist() for name, row in state["window"].items()}
        self.in_a_row, self.num_skipped = state["counts"].tolist()


def expected(values: list[float], name: str) -> tuple[float, float]:
    """Where the trend of `values` leads next, and sigma about it; infinite while there are too few."""
    if len(values) < FIRST:
        return 0.0, math.inf
    y, half = np.array(values), len(values) // 2
    x = np.arange(len(values), dtype=np.float64)
    slope = float(np.median((y[half:] - y[: len(y) - half]) / half))
    height = float(np.median(y - slope * x))
    trend = max(height + slope * len(values), float(np.median(y[-LAST:])))
    sigma = float(np.quantile(np.abs(np.diff(y) - slope), 0.9)) / NORMAL_90 / math.sqrt(2)
    return trend, max(sigma, FLOOR[name] * (abs(trend) if name == "loss" else 1.0), 1e-12)
