"""The curves of a stage's metrics.jsonl as charts. Any key may be absent: what was not measured is not drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.evaluate.charts import Points, heat_map, line_chart, load_map
from herd.evaluate.load import WINDOW, expert_counts, violation_over_windows

Lines = Sequence[Mapping[str, Any]]

MOST_CELLS = 32
"""Experts that the picture of the last load has room for; the maps over time have room for any number."""


def curve(lines: Lines, key: str) -> Points:
    """The finite values of one metric over the steps."""
    found = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    return [(float(step), float(value)) for step, value in found if np.isfinite(value)]


def learns_from_rewards(lines: Lines) -> bool:
    """Whether a stage of reinforcement learning wrote them."""
    return any("reward" in line for line in lines)


def training_charts(lines: Lines) -> list[str]:
    """Loss by kind, learning rate, gradient norm, a teacher's share, speed and balance of one stage."""
    kinds = sorted({key for line in lines for key in line if key.endswith("_loss")})
    speeds = sorted({key for line in lines for key in line if key.endswith("_per_s")})
    losses = {"all": curve(lines, "loss"), **{kind.removesuffix("_loss"): curve(lines, kind) for kind in kinds}}
    charts = [
        line_chart("Policy loss" if learns_from_rewards(lines) else "Loss, nats per token", losses),
        line_chart("Factor of the learning rates", {"factor": curve(lines, "lr_factor")}, from_zero=True),
        line_chart("Gradient norm", {"norm": curve(lines, "grad_norm")}, from_zero=True),
        line_chart("Held-out bits per byte", {"held out": curve(lines, "heldout_bits_per_byte")}),
        line_chart(
            "Teacher: mean share of its targets, and of the learnt tokens that have a row",
            {"alpha": curve(lines, "alpha"), "taught": curve(lines, "taught")},
            from_zero=True,
        ),
        *(line_chart(_speed_title(speed), {speed: curve(lines, speed)}, from_zero=True) for speed in speeds),
        line_chart("MaxVio", violations(lines), from_zero=True),
    ]
    return [chart for chart in charts if chart]


def _speed_title(key: str) -> str:
    """`tokens_per_s` in words."""
    return f"{key.removesuffix('_per_s').capitalize()} per second"


def violations(lines: Lines) -> dict[str, Points]:
    """MaxVio of each step and of the last steps together, of the worst layer."""
    steps, count_TLE = expert_counts(lines)
    windows = list(zip(steps, violation_over_windows(count_TLE).tolist(), strict=True)) if steps else []
    return {"a step": curve(lines, "max_vio"), f"{WINDOW} steps": windows}


def shares(lines: Lines) -> tuple[list[float], NDArray[np.float64]]:
    """The steps that were measured, and each expert's share of its mixture in them [T, L, E]."""
    steps, count_TLE = expert_counts(lines)
    return steps, count_TLE / np.maximum(count_TLE.sum(-1, keepdims=True), 1e-9) if steps else count_TLE


def load_at_the_end(lines: Lines) -> str:
    """Expert load of all layers in numbers; nothing where there are too many to read."""
    steps, share_TLE = shares(lines)
    if not steps or share_TLE.shape[-1] > MOST_CELLS:
        return ""
    last_LE = share_TLE[-max(1, len(steps) // 10) :].mean(0) * share_TLE.shape[-1]
    rows = {f"mixture {layer}": [float(value) for value in loads] for layer, loads in enumerate(last_LE, 1)}
    note = "experts; mean of the last tenth of the steps"
    return heat_map("Load of each expert at the end, 1 = even", rows, note=note)


def load_charts(lines: Lines) -> list[str]:
    """Expert load over time, a picture for each layer."""
    steps, share_TLE = shares(lines)
    if len(steps) < 2:
        return []
    return [
        load_map(f"Mixture {layer + 1}: load of each expert", steps, share_TLE[:, layer])
        for layer in range(share_TLE.shape[1])
    ]
