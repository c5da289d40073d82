"""The simulator beside real runs: a run that the simulator itself made is met, from its controls alone."""

from dataclasses import replace

import pytest

from herd.bench.rl_dial import Cell
from herd.bench.rl_dial_model import SKIPPED, RealRun, fixed_share, machine_of, simulate_run
from herd.bench.rl_model import Machine, Schedule, Workload, inflight, pinned, strong
from herd.bench.rl_sim import simulate

STEPS, GROUPS, SLOTS, KEEP = 30, 24, 192, 0.3
WORKLOAD = Workload(group_size=8, mean_tokens=11, token_sigma=0.2, group_sigma=0.4, keep=KEEP)
MACHINE = Machine(fixed_s=0.01, token_s=0.0005, train_s=0.4, slots=SLOTS)


def run_of(schedule: Schedule, machine: Machine = MACHINE, latency_s: float = 0.0) -> RealRun:
    """As if it had been real."""
    workload = replace(WORKLOAD, latency_s=latency_s)
    found = simulate(schedule, machine, workload, steps=STEPS, warm_up=SKIPPED)
    seconds = STEPS * found.seconds_per_step
    groups = [workload(one.ordinal) for one in found.groups if not one.to_judge]
    return RealRun(
        groups=[replace(one, env_s=(0.0,) * len(one.tokens)) for one in groups], num_steps=STEPS, seconds=seconds,
        waited_s=found.trainer_wait * seconds, num_trained=round(seconds / found.seconds_per_group),
        num_dealt=sum(one.wave >= SKIPPED for one in found.groups) or len(groups),
    )  # fmt: skip


def machine() -> Machine:
    """From the two controls without waits."""
    control = strong(GROUPS, keep=KEEP)
    alone, together = run_of(replace(control, max_groups=1)), run_of(control)
    return machine_of(together, fixed_share(alone, together, SLOTS), of_step=GROUPS, slots=SLOTS)


def test_service_times_are_found_from_the_controls() -> None:
    found = machine()
    assert found.fixed_s == pytest.approx(MACHINE.fixed_s, rel=0.02)
    assert found.token_s == pytest.approx(MACHINE.token_s, rel=0.02)
    assert found.train_s == pytest.approx(MACHINE.train_s, rel=0.01)


@pytest.mark.parametrize("latency_s", [0.0, 0.1])
@pytest.mark.parametrize("cell", [Cell(), Cell(mode="pinned", lag=1), Cell(mode="inflight", lag=4)])
def test_a_run_of_the_simulator_is_met_within_the_bar(cell: Cell, latency_s: float) -> None:
    lag = cell.lag
    schedule = inflight(GROUPS, lag) if cell.mode == "inflight" else pinned(GROUPS, lag, keep=KEEP)
    run = run_of(schedule, latency_s=latency_s)
    found = simulate_run(run, cell.config(STEPS + SKIPPED, 0), machine(), latency_s)
    assert found.seconds_per_group == pytest.approx(run.seconds_per_group, rel=0.1)
