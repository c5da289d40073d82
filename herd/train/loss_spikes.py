"""Which steps are outliers: their update is skipped, so that a poisoned batch does no harm.

Three kinds (`LossSpikesConfig.skip` selects them): a loss or gradient norm that is not finite; a loss more than
`sigmas` above where the trend of the last `window` updates leads; a gradient norm so far above its trend, by its
logarithm, as it varies by factors. The window holds only updates that were made, so a spike does not make the next one
usual.

The trend is a line: its slope the median of the slopes over half a window, its height the median. A loss that fell fast
and now levels off is above its line, so nothing below the median of the last few updates is expected. Sigma is taken
from the 90th percentile of the differences of neighbours, which a bend of the trend does not widen, nor do outliers
that came in before the window knew better; tails heavier than a normal distribution's do. With several ranks, judge
what is summed over all of them.
"""

import math

import numpy as np
import torch

from herd.config import LossSpikesConfig
from herd.train.checkpoint import State

FIRST = 16
"""Updates that are made before any is measured by them."""
LAST = 4
"""Updates below whose median nothing is expected."""
NORMAL_90 = 1.645
"""The 90th percentile of |x|, x standard normal."""
MIN_SIGMA = {"loss": 0.005, "grad_norm": 0.05}
"""Least sigma: of a loss relative to its trend, of a norm as a logarithm. What is so even has no outliers."""


class LossSpikes:
    """Judges the steps of one run; its window is part of the checkpoints."""

    def __init__(self, config: LossSpikesConfig) -> None:
        self.config = config
        self.window: dict[str, list[float]] = {name: [] for name in MIN_SIGMA}
        self.in_a_row = 0
        """Skipped steps since the last update."""
        self.num_skipped = 0
        """Skipped steps in the whole run."""
        self.trouble: str | None = None
        """Why the run cannot go on by itself, once outliers come in a row."""

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Why the step is to be skipped; None if its update is to be made."""
        reason = self._reason(loss, grad_norm)
        if reason is None:
            self.in_a_row = 0
            if math.isfinite(loss) and math.isfinite(grad_norm):
                for name, value in (("loss", loss), ("grad_norm", _log(grad_norm))):
                    self.window[name] = [*self.window[name], value][-self.config.window :]
            return None
        self.in_a_row += 1
        self.num_skipped += 1
        if self.in_a_row >= self.config.patience:
            self.trouble = f"{self.in_a_row} steps in a row were outliers, the last as its {reason}"
            # Whoever then runs the command again means it: what is usual is learnt anew.
            self.in_a_row, self.window = 0, {name: [] for name in MIN_SIGMA}
        return reason

    def _reason(self, loss: float, grad_norm: float) -> str | None:
        skip, sigmas = self.config.skip, self.config.sigmas
        if "not_finite" in skip:
            for name, value in (("loss", loss), ("gradient norm", grad_norm)):
                if not math.isfinite(value):
                    return f"{name} is {value}"
        if "loss" in skip:
            trend, sigma = expected(self.window["loss"], "loss")
            if loss > trend + sigmas * sigma:
                return f"loss {loss:.4g} is {(loss - trend) / sigma:.0f} sigma above {trend:.4g}"
        if "grad_norm" in skip:
            trend, sigma = expected(self.window["grad_norm"], "grad_norm")
            above = (_log(grad_norm) - trend) / sigma
            if above > sigmas:
                return f"gradient norm {grad_norm:.4g} is {above:.0f} sigma above {math.exp(trend):.4g}"
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


def _log(grad_norm: float) -> float:
    return math.log(max(grad_norm, 1e-30))


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
    return trend, max(sigma, MIN_SIGMA[name] * (abs(trend) if name == "loss" else 1.0), 1e-12)
