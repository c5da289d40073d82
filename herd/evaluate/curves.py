"""The curves of a stage's metrics.jsonl as charts. Any key may be absent: what was not measured is not drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from herd.evaluate.charts import Points, heat_map, line_chart, share_chart

Lines = Sequence[Mapping[str, Any]]


def curve(lines: Lines, key: str) -> Points:
    """The finite values of one metric over the steps."""
    found = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    return [(float(step), float(value)) for step, value in found if np.isfinite(value)]


def training_charts(lines: Lines) -> list[str]:
    """Loss by kind, learning rate, gradient norm, speed and balance of one stage."""
    kinds = sorted({key for line in lines for key in line if key.endswith("_loss")})
    speeds = sorted({key for line in lines for key in line if key.endswith("_per_s")})
    losses = {"all": curve(lines, "loss"), **{kind.removesuffix("_loss"): curve(lines, kind) for kind in kinds}}
    charts = [
        line_chart("Loss, nats per token", losses),
        line_chart("Learning rate, share of its peak", {"lr": curve(lines, "lr")}, from_zero=True),
        line_chart("Gradient norm", {"norm": curve(lines, "grad_norm")}, from_zero=True),
        *(line_chart(_speed_title(speed), {speed: curve(lines, speed)}, from_zero=True) for speed in speeds),
        line_chart("MaxVio: busiest expert / even load − 1", {"max": curve(lines, "max_vio")}, from_zero=True),
    ]
    return [chart for chart in charts if chart]


def _speed_title(key: str) -> str:
    """`tokens_per_s` in words."""
    return f"{key.removesuffix('_per_s').capitalize()} per second"


def load_charts(lines: Lines) -> list[str]:
    """Expert load: over time for each layer, and at the end for all."""
    measured = [line for line in lines if line.get("expert_load")]
    if not measured:
        return []
    steps = [float(line["step"]) for line in measured]
    share_TLE = np.array([line["expert_load"] for line in measured], dtype=np.float64)
    share_TLE /= np.maximum(share_TLE.sum(-1, keepdims=True), 1e-9)
    num_experts = share_TLE.shape[-1]
    last_LE = share_TLE[-max(1, len(measured) // 10) :].mean(0) * num_experts
    rows = {f"mixture {layer}": [float(value) for value in loads] for layer, loads in enumerate(last_LE, 1)}
    charts = [
        heat_map("Load of each expert at the end, 1 = even", rows, note="experts; mean of the last tenth of the steps")
    ]
    if len(measured) > 1:
        charts += [
            share_chart(f"Mixture {layer + 1}: share of each expert", steps, share_TLE[:, layer])
            for layer in range(share_TLE.shape[1])
        ]
    return charts
