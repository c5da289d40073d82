"""What the simulator makes of a real run of the dial (rl_dial.py): the same groups, at service times of the controls.

Service times are read where nothing overlaps and no environment waits: the synchronous run draws, then trains. How much
of a step of the engine does not depend on its size follows from groups that are drawn one after the other. The lengths
and the signal of each group, and how many groups a wave has, are those of the run itself: they are what it learns, not
how it is scheduled. Waits are drawn anew from their distribution. Left out: what drawing and training in one process
cost each other, and packing of batches.
"""

import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from herd.bench.rl_model import GroupWork, Machine, Schedule, inflight, pinned
from herd.bench.rl_sim import Result, engine_steps, simulate
from herd.config import RlConfig
from herd.core.streams import stream
from herd.core.tracker import read_metrics
from herd.rl.journal import Journal
from herd.stages.rl import JOURNAL

SKIPPED = 2
"""First steps of a run that are not timed."""


@dataclass(frozen=True, kw_only=True)
class RealRun:
    """What a finished run says of its timed steps."""

    groups: list[GroupWork]
    """All that were drawn, in the order of admission, without their waits."""
    num_steps: int
    seconds: float
    waited_s: float
    """Of these, the trainer for groups."""
    num_trained: int
    num_dealt: int
    """Of the waves of these steps, or admitted during them."""

    @property
    def seconds_per_group(self) -> float:
        return self.seconds / self.num_trained

    @property
    def draw_s(self) -> float:
        """Of a drawn group, where drawing and training take turns."""
        return self.waited_s / self.num_dealt

    @property
    def train_s(self) -> float:
        """Of a trained group."""
        return (self.seconds - self.waited_s) / self.num_trained


def read_run(folder: Path) -> RealRun:
    """Read a finished folder."""
    lines = read_metrics(folder / "metrics.jsonl")
    journal = Journal(folder / JOURNAL, read_only=True)
    groups = []
    for ordinal in sorted(journal.finished):
        group = journal.group(ordinal)
        lengths = tuple(float(one.drawn.sum()) for one in group.rollouts)
        groups.append(GroupWork(tokens=lengths, env_s=(0.0,) * len(lengths), has_signal=group.has_signal))
    run = RealRun(
        groups=groups, num_steps=len(lines) - SKIPPED, seconds=lines[-1]["seconds"] - lines[SKIPPED - 1]["seconds"],
        waited_s=sum(line["data_wait_s"] for line in lines[SKIPPED:]),
        num_trained=sum(len(journal.picked[line["step"]]) for line in lines[SKIPPED:]),
        num_dealt=sum(one.wave >= SKIPPED for one in journal.admitted.values()),
    )  # fmt: skip
    journal.close()
    return run


def steps_at_once(run: RealRun, slots: int) -> float:
    """Steps of the engine for each group, where a wave is drawn at once."""
    wave = min(math.ceil(run.num_dealt / run.num_steps), len(run.groups))
    machine = Machine(fixed_s=0.0, token_s=0.0, train_s=0.0, slots=slots)
    begins = range(0, len(run.groups) - wave + 1, wave)
    return statistics.fmean(engine_steps(machine, run.groups[begin : begin + wave]) for begin in begins) / wave


def fixed_share(alone: RealRun, together: RealRun, slots: int) -> float:
    """Of the time to draw a wave at once, what its number of steps costs, whatever their size: drawn one after the
    other, the same tokens take more steps."""
    in_turn = statistics.fmean(max(one.tokens) for one in together.groups)
    share = (alone.draw_s / together.draw_s - 1) / (in_turn / steps_at_once(together, slots) - 1)
    return min(1.0, max(0.0, share))


def machine_of(control: RealRun, share: float, *, of_step: int, slots: int) -> Machine:
    """Service times of a synchronous run without waits."""
    tokens = statistics.fmean(sum(one.tokens) for one in control.groups)
    return Machine(
        fixed_s=share * control.draw_s / steps_at_once(control, slots), token_s=(1 - share) * control.draw_s / tokens,
        train_s=control.train_s * of_step, slots=slots,
    )  # fmt: skip


def simulate_run(run: RealRun, config: RlConfig, machine: Machine, latency_s: float) -> Result:
    """The run's schedule with its groups; waits are log-normal with sigma 1."""
    if config.mode == "inflight":
        schedule: Schedule = inflight(config.groups, config.lag)
    else:
        keep = min(1.0, config.groups * run.num_steps / run.num_dealt)
        schedule = pinned(config.groups, config.steps_behind, keep=keep)
    if config.max_groups:
        schedule = replace(schedule, max_groups=config.max_groups)

    def work(ordinal: int) -> GroupWork:
        one = run.groups[ordinal % len(run.groups)]
        normal = stream(config.seed, "simulated wait", ordinal).standard_normal(len(one.tokens))
        waits = latency_s * np.exp(normal)
        return replace(one, env_s=tuple(waits.tolist()))

    return simulate(schedule, machine, work, steps=run.num_steps, warm_up=SKIPPED)
