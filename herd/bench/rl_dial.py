"""`herd bench rl --cases real`: seconds of a trained group in real runs, over the latency of the environment.

The same model, tasks and seed in each cell; what differs is the schedule. The control `strong synchronous` is mode
`sync`: all groups of a step at once, continuous batching, shared prompts, the slowest waited for. `naive` draws and
grades one group after the other. Both train the same groups in the same order, so their weights are the same to the
bit, and naive is run for few steps. Waits are log-normal (sigma 1), a function of the seed. Beside the seconds of a
line stand the simulator's (rl_dial_model.py), the groups that a step was trained on, and what the model is worth at its
end: right answers to held-out prompts.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from herd.bench.rl_dial_model import SKIPPED, RealRun, fixed_share, machine_of, read_run, simulate_run
from herd.bench.rl_learning import MAX_TOKENS, SPECS, World, make_world, measure
from herd.bench.table import Row
from herd.config import CheckpointConfig, RlConfig
from herd.config.rl import ModeName
from herd.rl.environment import Delay, open_environment
from herd.stages.rl import rl

GROUPS, GROUP_SIZE, CORES = 24, 8, 2
NAIVE_STEPS = 2
"""Steps of naive that are timed."""
CONTROL, NAIVE = "strong synchronous", "naive"
ONE_CORE = "synchronous on one core"
"""Its service times are those of the schedules that draw with one core and train with the other."""
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
    cores: int = CORES
    """`sync` has them in turn; the other modes share them."""

    def config(self, steps: int, seed: int) -> RlConfig:
        return RlConfig(
            environments=(f"{__name__}:delayed",), num_steps=self.exact_steps or steps,
            groups=GROUPS, group_size=GROUP_SIZE, max_tokens=MAX_TOKENS, seed=seed, dtype="bfloat16",
            optimizer=replace(RlConfig().optimizer, lr_scale=0.1, decay=0.0),
            checkpoint=CheckpointConfig(every_s=3600), mode=self.mode, lag=self.lag, max_groups=self.max_groups,
            slots=GROUPS * GROUP_SIZE,
        )  # fmt: skip


def schedules(lags: Sequence[int]) -> dict[str, Cell]:
    """The controls first."""
    return {
        NAIVE: Cell(max_groups=1, exact_steps=SKIPPED + NAIVE_STEPS),
        CONTROL: Cell(),
        **{f"pinned, lag {lag}": Cell(mode="pinned", lag=lag) for lag in lags},
        **{f"in flight, lag {lag}": Cell(mode="inflight", lag=lag) for lag in lags},
    }


@dataclass(frozen=True, kw_only=True)
class Line:
    """A cell and what came of it."""

    run: RealRun
    simulated_s: float
    """A trained group."""
    right: float
    """Share of right answers to held-out prompts of digits."""

    def text(self, name: str, latency_s: float) -> str:
        error = self.simulated_s / self.run.seconds_per_group - 1
        of = "as strong synchronous" if name == NAIVE else f"{self.right:.3f} right"
        return (
            f"{latency_s:g} s, {name}: {1e3 * self.run.seconds_per_group:.1f} ms a trained group, simulated "
            f"{1e3 * self.simulated_s:.1f} ({error:+.0%}), {self.run.num_trained / self.run.num_steps:.1f} of {GROUPS} "
            f"groups a step, {self.run.num_dealt / self.run.num_trained:.1f} drawn for each, {of}"
        )


def run_cell(world: World, name: str, cell: Cell, latency_s: float, steps: int, out: Path) -> Path:
    """The folder of a cell, run now or before."""
    global _latency_s
    _latency_s = latency_s
    folder = out / f"{name} {latency_s * 1000:.0f}ms".replace(", ", "-").replace(" ", "-")
    if not folder.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(cell.cores)  # each time, as the modes that share them leave half
        rl(cell.config(steps, world.seed), world.base, world.data, folder)
        torch.set_num_threads(threads)
    return folder


def real_rows(out: Path, latencies: Sequence[float], lags: Sequence[int], steps: int, *, quiet: bool) -> list[Row]:
    """Run the cells that are not run, and compare."""
    world, rows, cells = make_world(0, out), [], schedules(lags)
    alone, control, one_core = (
        read_run(run_cell(world, name, cell, 0.0, steps, out))
        for name, cell in ((NAIVE, cells[NAIVE]), (CONTROL, cells[CONTROL]), (ONE_CORE, Cell(cores=1)))
    )
    slots = GROUPS * GROUP_SIZE
    share = fixed_share(alone, control, slots)
    whole, half = (machine_of(run, share, of_step=GROUPS, slots=slots) for run in (control, one_core))
    if not quiet:
        for name, run in (("both cores", control), ("one core", one_core), ("one group at a time", alone)):
            print(f"{name}: {1e3 * run.draw_s:.1f} ms to draw a group, {1e3 * run.train_s:.1f} to train one")
        print(f"{share:.0%} of drawing a wave is spent on steps, however full they are", flush=True)
    for latency_s in latencies:
        found = {}
        for name, cell in cells.items():
            folder = run_cell(world, name, cell, latency_s, steps, out)
            run, machine = read_run(folder), whole if cell.mode == "sync" else half
            counts = measure(folder, world.seed, folder.with_suffix(".json"))
            found[name] = Line(
                run=run, right=right_digits(counts),
                simulated_s=simulate_run(run, cell.config(steps, world.seed), machine, latency_s).seconds_per_group,
            )  # fmt: skip
            if not quiet:
                print(found[name].text(name, latency_s), flush=True)
        for name, line in found.items():
            case = f"{latency_s:g} s, {name}: trained group"
            for peer in (CONTROL, NAIVE):
                if name not in (CONTROL, NAIVE):
                    peer_s = found[peer].run.seconds_per_group
                    rows.append(Row(case=case, unit="s", ours=line.run.seconds_per_group, peer=peer_s, peer_name=peer))
            rows.append(
                Row(
                    case=case, unit="s", ours=line.run.seconds_per_group, peer=line.simulated_s,
                    peer_name="the simulator",
                )
            )  # fmt: skip
    return rows


def right_digits(counts: Mapping[str, list[int]]) -> float:
    """Share of right answers, by cell, of those to digits."""
    return statistics.fmean(
        statistics.fmean(right) / GROUP_SIZE for cell, right in counts.items() if cell.startswith("digits")
    )
