"""How even the load of the experts was, from the counts in metrics.jsonl: [steps T, layers L, experts E]."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.core.streams import stream

WARMUP = 0.1
"""Share of the steps, at the beginning, that is not judged."""
WINDOW = 100
"""Steps whose counts are summed for the running figure."""


def expert_counts(lines: Sequence[Mapping[str, Any]]) -> tuple[list[float], NDArray[np.float64]]:
    """The steps that were measured, and their counts."""
    measured = [line for line in lines if line.get("expert_load")]
    return [float(line["step"]) for line in measured], np.array([line["expert_load"] for line in measured], dtype=float)


def violation(count_TLE: NDArray[np.float64]) -> float:
    """MaxVio of the worst layer over all steps together: busiest expert / even load - 1."""
    sum_LE = count_TLE.sum(0)
    return float((sum_LE / np.maximum(sum_LE.mean(-1, keepdims=True), 1e-9)).max() - 1)


def violation_by_step(count_TLE: NDArray[np.float64]) -> NDArray[np.float64]:
    """MaxVio of the worst layer in each step [T]."""
    worst: NDArray[np.float64] = (count_TLE / np.maximum(count_TLE.mean(-1, keepdims=True), 1e-9)).max((-1, -2)) - 1
    return worst


def violation_over_windows(count_TLE: NDArray[np.float64]) -> NDArray[np.float64]:
    """MaxVio of the worst layer over the last WINDOW steps, after each step [T]."""
    sums_TLE = np.cumsum(count_TLE, axis=0)
    sums_TLE[WINDOW:] -= sums_TLE[:-WINDOW].copy()
    return violation_by_step(sums_TLE)


def load_facts(count_TLE: NDArray[np.float64]) -> dict[str, float]:
    """After the warm-up: MaxVio over all steps and of a step, each with what an even lottery gives, and the number of
    experts that got nothing."""
    judged_TLE = count_TLE[round(WARMUP * len(count_TLE)) :]
    even_E = np.full(judged_TLE.shape[-1], 1 / judged_TLE.shape[-1])
    lottery_TLE = stream(0, "lottery").multinomial(judged_TLE.sum(-1).round().astype(int), even_E).astype(float)
    return {
        "vio": violation(judged_TLE),
        "vio_lottery": violation(lottery_TLE),
        "step": float(violation_by_step(judged_TLE).mean()),
        "step_lottery": float(violation_by_step(lottery_TLE).mean()),
        "dead": int((judged_TLE.sum(0) == 0).sum()),
    }
