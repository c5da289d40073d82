"""`herd bench rl --cases ladder`: the corrections beside each other where answers are drawn by weights LAG steps old.
`--cases router`: routing replay where the engine's routers have noise that the trainer's have not.

The base and its tasks are those of rl_learning.py. All arms of a seed make as many steps, from the same base, in fp32;
their batches differ, as each draws by its own weights. The control is on policy. What is finished under `out` is read,
so an end before the last arm costs that arm alone.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from herd.bench.rl_learning import BASE, World, figures_of, make_world, measure, reinforce, timed
from herd.bench.table import T_95, Row, interval
from herd.config import CorrectionConfig, ModelConfig, RlConfig
from herd.core.streams import seed_of
from herd.errors import HerdError
from herd.rl.corrections import CORRECTIONS

LAG, STEPS, GROUPS, LAST = 8, 40, 12, 10
"""`LAST`: steps whose rewards are averaged."""
CONTROL = "on policy"
SIGMA = 1.0
"""Standard deviation of the noise in a router's weights, by that of the weights."""
NOISY = "noisy router"


def arms() -> dict[str, dict[str, Any]]:
    """What changes in each: a correction without the mask, the mask alone and with `tis`, and the control."""
    loss = RlConfig().loss
    corrections: dict[str, CorrectionConfig] = {name: CorrectionConfig(name=name, mask=1.0) for name in CORRECTIONS}
    corrections |= {f"{name}, mask": CorrectionConfig(name=name) for name in ("none", "tis")}
    late: dict[str, dict[str, Any]] = {
        name: {"mode": "pinned", "lag": LAG, "loss": replace(loss, correction=one)} for name, one in corrections.items()
    }
    return {CONTROL: {"mode": "sync"}, **late}


def noisy_arms() -> dict[str, dict[str, Any]]:
    """On policy but for the router's noise: with and without replay, uncorrected and with the default correction."""
    plain = replace(RlConfig().loss, correction=CorrectionConfig(name="none", mask=1.0))
    arms: dict[str, dict[str, Any]] = {CONTROL: {"mode": "sync"}}
    for name, loss in ((f"{NOISY}, uncorrected", plain), (NOISY, RlConfig().loss)):
        arms[name] = {"mode": "sync", "loss": loss}
        arms[f"{name}, replay"] = {"mode": "sync", "loss": loss, "replay": "on"}
    return arms


def with_noise(seed: int) -> Callable[..., Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]]:
    """In place of herd.stages.rl.packing: the engine's routers have other noise in each version."""

    def packing(config: RlConfig, shape: ModelConfig) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]:
        number = 0

        def prepare(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            nonlocal number
            generator = torch.Generator().manual_seed(seed_of(seed, "router noise", number) % 2**63)
            number += 1
            noisy = dict(tensors)
            for name in [name for name in tensors if name.endswith("router.weight")]:
                weight = tensors[name]
                noise = torch.randn(weight.shape, generator=generator) * (SIGMA * weight.float().std())
                noisy[name] = (weight.float() + noise).to(weight.dtype)
            return noisy

        return prepare

    return packing


def run_arm(name: str, changes: Mapping[str, Any], world: World) -> dict[str, float]:
    """The figures of one arm, trained now or before."""
    folder = world.folder / f"ladder-{name.replace(', ', '-').replace(' ', '-')}"
    common: dict[str, Any] = {"num_steps": STEPS, "groups": GROUPS, "dtype": "float32"}
    with patch("herd.stages.rl.packing", with_noise(world.seed)) if name.startswith(NOISY) else nullcontext():
        seconds = timed(folder, lambda: reinforce(folder, world, **common, **changes))
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        **figures_of(measure(folder, world.seed, folder.with_suffix(".json")), set()),
        "reward": statistics.fmean(one["reward"] for one in steps[-LAST:]),
        "k3": statistics.fmean(one["k3"] for one in steps),
        "clipped": statistics.fmean(one["clipped"] for one in steps),
        "masked": statistics.fmean(one["masked"] for one in steps),
        "flips": statistics.fmean(one.get("route_flips", 0.0) for one in steps),
        "skipped steps": sum("skipped" in one for one in steps),
        "seconds": seconds,
    }


def run_seed(
    seed: int, out: Path, arms: Mapping[str, Mapping[str, Any]], *, quiet: bool
) -> dict[str, dict[str, float]]:
    """The figures of each arm."""
    world = make_world(seed, out, dtype="float32")
    found = {BASE: figures_of(measure(world.base, seed, world.folder / "base.json"), set())}
    for name, changes in arms.items():
        found[name] = run_arm(name, changes, world)
        if not quiet:
            shown = ", ".join(f"{key} {value:.3g}" for key, value in found[name].items())
            print(f"seed {seed}, {name}: {shown}", flush=True)
    return found


def ladder_rows(out: Path, seeds: int, case: str, *, quiet: bool) -> list[Row]:
    """Train what is not trained, and compare with the control; `case` is `ladder` or `router`."""
    if seeds not in T_95:
        raise HerdError(f"seeds={seeds} must be 2 to {max(T_95)}")
    torch.set_num_threads(1)
    asked = arms() if case == "ladder" else noisy_arms()
    found = [run_seed(seed, out, asked, quiet=quiet) for seed in range(seeds)]
    if not quiet:
        for name in found[0]:
            shown = ", ".join(f"{key} {interval([one[name][key] for one in found])}" for key in found[0][name])
            print(f"{name}: {shown}")
    lag = LAG if case == "ladder" else 0
    return [
        Row(
            case=f"lag {lag}, {name}: pass@1, held out", unit="share", more_is_better=True, peer_name=CONTROL,
            ours=statistics.fmean(one[name]["pass@1"] for one in found),
            peer=statistics.fmean(one[CONTROL]["pass@1"] for one in found),
        )
        for name in asked if name != CONTROL
    ]  # fmt: skip
