"""`herd bench rl --cases real`: seconds of a trained group in real runs, over the latency of the environment.

The same model, tasks and seed in each cell; what differs is the schedule. The control `strong synchronous` is mode
`sync`: all groups of a step at once, continuous batching, shared prompts, the slowest waited for. `naive` draws and
grades one group after the other. Both train the same groups in the same order, so their weights are the same to the
bit, and naive is run for few steps. Waits are log-normal (sigma 1), a function of the seed. Beside the seconds of a
line stands what the model is worth at its end: right answers to held-out prompts.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from herd.bench.rl_learning import MAX_TOKENS, SPECS, World, make_world, measure
from herd.bench.table import Row
from herd.config import CheckpointConfig, RlConfig
from herd.config.rl import ModeName
from herd.core.tracker import read_metrics
from herd.rl.environment import Delay, open_environment
from herd.rl.journal import Journal
from herd.stages.rl import JOURNAL, rl

GROUPS, GROUP_SIZE = 24, 8
NAIVE_STEPS, SKIPPED = 5, 2
"""Steps of naive, and first steps of each run that are not timed."""
CONTROL, NAIVE = "strong synchronous", "naive"
_latency_s = 0.0


def delayed(seed: int, heldout: bool) -> Delay:
    """The environment of the cell that runs, as `module:name`."""
    return Delay(open_environment(SPECS["digits"], None, seed, heldout=heldout), _latency_s, seed)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    mode: ModeName = "sync"
    lag: int = 0
    max_groups: int = 0
    exact_steps: int | None = None


def schedules(lags: Sequence[int]) -> dict[str, Cell]:
    """The controls first."""
    return {
        NAIVE: Cell(max_groups=1, exact_steps=SKIPPED + NAIVE_STEPS),
        CONTROL: Cell(),
        **{f"pinned, lag {lag}": Cell(mode="pinned", lag=lag) for lag in lags},
        **{f"in flight, lag {lag}": Cell(mode="inflight", lag=lag) for lag in lags},
    }


def run_cell(world: World, name: str, cell: Cell, latency_s: float, steps: int, out: Path) -> tuple[float, float]:
    """Seconds a trained group, and the share of right answers at the end; run now or before."""
    global _latency_s
    _latency_s = latency_s
    folder = out / f"{name} {latency_s * 1000:.0f}ms".replace(", ", "-").replace(" ", "-")
    if not folder.exists():
        base = RlConfig()
        config = RlConfig(
            environments=(f"{__name__}:delayed",), num_steps=cell.exact_steps or steps,
            groups=GROUPS, group_size=GROUP_SIZE, max_tokens=MAX_TOKENS, seed=world.seed, dtype="bfloat16",
            optimizer=replace(base.optimizer, lr_scale=0.1, decay=0.0), checkpoint=CheckpointConfig(every_s=3600),
            mode=cell.mode, lag=cell.lag, max_groups=cell.max_groups, slots=GROUPS * GROUP_SIZE,
        )  # fmt: skip
        rl(config, world.base, world.data, folder)
    lines = read_metrics(folder / "metrics.jsonl")
    journal = Journal(folder / JOURNAL, read_only=True)
    groups = sum(len(journal.picked[line["step"]]) for line in lines[SKIPPED:])
    journal.close()
    right = measure(folder, world.seed, folder.with_suffix(".json"))
    passed = statistics.fmean(
        statistics.fmean(counts) / GROUP_SIZE for cell, counts in right.items() if cell.startswith("digits")
    )
    return (lines[-1]["seconds"] - lines[SKIPPED - 1]["seconds"]) / groups, passed


def real_rows(out: Path, latencies: Sequence[float], lags: Sequence[int], steps: int, *, quiet: bool) -> list[Row]:
    """Run the cells that are not run, and compare."""
    world, rows = make_world(0, out), []
    for latency_s in latencies:
        found = {name: run_cell(world, name, cell, latency_s, steps, out) for name, cell in schedules(lags).items()}
        for name, (seconds, passed) in found.items():
            if not quiet:
                of = "as strong synchronous" if name == NAIVE else f"{passed:.3f} right"
                print(f"{latency_s:g} s, {name}: {seconds * 1000:.1f} ms a trained group, {of}", flush=True)
            for peer in (CONTROL, NAIVE):
                if name not in (CONTROL, NAIVE):
                    case = f"{latency_s:g} s, {name}: trained group"
                    rows.append(Row(case=case, unit="s", ours=seconds, peer=found[peer][0], peer_name=peer))
    return rows
