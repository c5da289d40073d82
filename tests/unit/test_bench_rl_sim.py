"""The discrete-event model of reinforcement learning: its laws, and cases whose answer is known by hand."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.bench.rl_model import GroupWork, Machine, Schedule, Workload, inflight, naive, pinned, strong
from herd.bench.rl_schedules import Group
from herd.bench.rl_sim import Result, simulate
from herd.errors import HerdError

EVEN = Machine(fixed_s=0.0, token_s=0.01, train_s=1.0)


def work(*tokens: float, env_s: float = 0.0) -> Callable[[int], GroupWork]:
    return lambda ordinal: GroupWork(tokens=tokens, env_s=(env_s,) * len(tokens))


def random_run(seed: int) -> tuple[Schedule, Machine, Workload]:
    """A small one. hypothesis takes minutes to make 10,000."""
    rng = np.random.default_rng(seed)

    def one_of(*values: float) -> float:
        return float(rng.choice(values))

    of_step, lag, keep = int(rng.integers(1, 5)), int(rng.integers(4)), one_of(1.0, 0.6)
    window = int(rng.integers(1, 3 * of_step + 1))
    schedule = (
        pinned(of_step, lag, keep=keep),
        naive(of_step, keep=keep),
        inflight(of_step, lag, window=window),
        inflight(of_step, lag, window=1),
        replace(inflight(of_step, lag, window=window), max_groups=int(rng.integers(1, 5))),
    )[rng.integers(5)]
    machine = Machine(
        fixed_s=one_of(0, 0.1), token_s=one_of(0.01, 0.1), train_s=one_of(0.1, 1), prefill_s=one_of(0, 0.3),
        publish_s=one_of(0, 0.2), slots=one_of(1, 3, math.inf), alone=one_of(1, 1.7),
    )  # fmt: skip
    workload = Workload(
        group_size=int(rng.integers(1, 4)), mean_tokens=4.0, token_sigma=one_of(0, 1), latency_s=one_of(0, 0.5, 5),
        latency_by_length=one_of(0, 1), keep=keep, seed=seed,
    )  # fmt: skip
    return schedule, machine, workload


def check_laws(schedule: Schedule, groups: Sequence[Group], steps: int) -> None:
    """What holds of any run."""
    trained = [one for one in groups if one.step is not None]
    batches = [[one for one in trained if one.step == step] for step in range(steps)]
    assert all(batches)
    for one in groups:
        assert one.dropped == (one.to_judge == 0 and not one.work.has_signal)
        assert (one.step is None or not one.dropped) and one.age <= schedule.max_age
    if schedule.kind == "inflight":
        assert {len(batch) for batch in batches} == {schedule.groups_per_step}
        under_way = [one for one in groups if one.step is None and not one.dropped]
        assert len(under_way) <= schedule.capacity
        # Nothing is left behind: what is trained is less than a window from the oldest that is not judged.
        line = [one for one in groups if not one.dropped]
        oldest = next((place for place, one in enumerate(line) if one.to_judge), len(line))
        assert all(one.step is None for one in line[oldest + schedule.window :])
        if schedule.window == 1:
            order = [one.ordinal for batch in batches for one in sorted(batch, key=lambda one: one.ordinal)]
            assert order == [one.ordinal for one in groups if not one.dropped][: len(order)]
    else:
        for step, batch in enumerate(batches):
            wave = [one for one in groups if one.wave == step]
            assert batch == [one for one in wave if not one.dropped]
            assert {(one.version, one.last_version) for one in wave} == {(max(0, step - int(schedule.lag)),) * 2}
            assert {one.age for one in batch} == {min(step, int(schedule.lag))}


@pytest.mark.parametrize("num_runs", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_each_group_is_trained_once_or_dropped_none_is_too_old_and_a_window_of_one_is_strict(num_runs: int) -> None:
    for seed in range(num_runs):
        schedule, machine, workload = random_run(seed)
        result = simulate(schedule, machine, workload, steps=2, warm_up=2)
        try:
            check_laws(schedule, result.groups, 4)
            assert 0 <= result.trainer_wait <= 1 and 0 <= result.engine_idle <= 1
            assert 1 - 1e-9 <= result.concurrency <= schedule.max_groups * (1 + 1e-9)
        except AssertionError as error:
            raise AssertionError(f"run {seed}: {schedule} {machine} {workload}") from error


def seconds(schedule: Schedule, machine: Machine, group: Callable[[int], GroupWork], **more: int) -> float:
    return simulate(schedule, machine, group, **more).seconds_per_step


def test_a_synchronous_step_is_the_engines_time_the_slowest_environment_and_training() -> None:
    """The oracle steps through the engine's tokens one rollout after the other, in NumPy."""
    machine = Machine(fixed_s=0.002, token_s=0.001, train_s=0.3, prefill_s=0.01, publish_s=0.05)
    workload = Workload(group_size=4, mean_tokens=30, token_sigma=0.7, latency_s=0.1, latency_by_length=1.0)
    expected = []
    for step in range(10):
        groups = [workload(ordinal) for ordinal in range(5 * step, 5 * step + 5)]
        tokens = np.concatenate([one.tokens for one in groups])
        env_s = np.concatenate([one.env_s for one in groups])[np.argsort(tokens)]
        tokens = np.sort(tokens)
        running = len(tokens) - np.arange(len(tokens))
        ends = np.cumsum(np.diff(tokens, prepend=0.0) * (machine.fixed_s + machine.token_s * running))
        expected.append(0.05 * (step > 0) + 5 * 0.01 + float(np.max(ends + env_s)) + 0.3 + 0.05)
    run = seconds(strong(5), machine, workload, steps=9, warm_up=1)
    assert run == pytest.approx(np.mean(expected[1:]))


@given(draw_s=st.floats(0.1, 5), env_s=st.floats(0, 20), train_s=st.floats(0.1, 5), lag=st.integers(0, 4))
@settings(deadline=None)
def test_with_constant_times_a_step_takes_its_slowest_part_or_a_round_trip_shared_by_lag_and_one_steps(
    draw_s: float, env_s: float, train_s: float, lag: int
) -> None:
    machine = Machine(fixed_s=0.0, token_s=draw_s / 20, train_s=train_s, slots=4)  # a step's rollouts
    round_trip = (draw_s + env_s + train_s) / (lag + 1)
    for schedule, serial in ((inflight(2, lag, window=1), 0.0), (pinned(2, lag), draw_s + env_s)):
        # A wave waits until one group of the last is judged, and here all are at the same time.
        found = seconds(schedule, machine, work(5, 5, env_s=env_s), steps=10 * (lag + 1), warm_up=10 * (lag + 1))
        assert found == pytest.approx(max(draw_s, train_s, round_trip, serial), rel=1e-6)


def test_a_deterministic_server_with_two_clients_is_as_in_the_textbook() -> None:
    """M/D/1 with two clients: a step finds the other client waiting with probability 1 - exp(-T / E); else the trainer
    waits for the sooner of two, E / 2. So a step takes T + E / 2 * exp(-T / E)."""
    thinking, service = 2.0, 1.0
    rng = np.random.default_rng(0)
    delays = rng.exponential(thinking, 40_000)
    machine = Machine(fixed_s=0.0, token_s=1e-9, train_s=service)
    found = seconds(
        inflight(1, 1, window=10**6),
        machine,
        lambda ordinal: GroupWork(tokens=(1.0,), env_s=(float(delays[ordinal]),)),
        steps=30_000,
    )
    assert found == pytest.approx(service + thinking / 2 * math.exp(-service / thinking), rel=0.01)


def test_a_full_engine_draws_as_many_tokens_as_its_batch_gives() -> None:
    machine = Machine(fixed_s=0.03, token_s=0.001, train_s=1e-9, slots=16)
    workload = Workload(group_size=1, mean_tokens=50, token_sigma=0.8)
    result = simulate(inflight(1, 99, window=100), machine, workload, steps=20_000, warm_up=200)
    # 16 rollouts of 50 tokens on average, always; a step has 0.03 + 16 * 0.001 seconds and 16 tokens.
    assert 1 / result.seconds_per_step == pytest.approx(16 / 0.046 / 50, rel=0.03)
    assert result.engine_idle < 1e-6


def test_lag_zero_on_shared_cores_is_the_strong_baseline_and_on_halved_ones_it_is_slower() -> None:
    workload = Workload(group_size=4, mean_tokens=25, token_sigma=0.5, latency_s=0.3)
    shared, halved = replace(EVEN, alone=1.7), EVEN
    cost = seconds(strong(6), shared, workload)
    assert seconds(inflight(6, 0, window=1), shared, workload) == pytest.approx(cost)
    assert seconds(inflight(6, 0, window=1), halved, workload) > 1.1 * cost


@settings(max_examples=15, deadline=None)
@given(
    lag=st.integers(1, 4), latency=st.sampled_from([0.0, 0.1, 1.0, 10.0]), seed=st.integers(0, 99),
    window=st.integers(1, 20), alone=st.sampled_from([1.0, 1.7]),
)  # fmt: skip
def test_the_gain_over_the_strong_baseline_is_at_most_lag_and_one(
    lag: int, latency: float, seed: int, window: int, alone: float
) -> None:
    workload = Workload(group_size=2, mean_tokens=25, token_sigma=0.3, latency_s=latency, seed=seed)
    machine = replace(EVEN, alone=alone)
    steps = 60
    control = seconds(strong(4), machine, workload, steps=steps, warm_up=0)
    for schedule in (pinned(4, lag), inflight(4, lag, window=1), inflight(4, lag, window=window)):
        # From the first step on, so that both are trained on the same groups: the last ones of a window may be later.
        gain = control / seconds(schedule, machine, workload, steps=steps, warm_up=0)
        assert gain <= (schedule.max_age + 1) * (1 + (schedule.max_age + 1) / steps)


@settings(max_examples=10, deadline=None)
@given(lag=st.integers(1, 8), train_s=st.floats(0.2, 3.0), seed=st.integers(0, 99))
def test_without_latency_one_machine_gains_no_more_than_its_cores_lose_alone(
    lag: int, train_s: float, seed: int
) -> None:
    workload = Workload(group_size=4, mean_tokens=25, token_sigma=0.5, seed=seed)
    machine = replace(EVEN, train_s=train_s, alone=1.7)
    control = seconds(strong(4), machine, workload, steps=200)
    for schedule in (pinned(4, lag), inflight(4, lag)):
        # The groups at both ends of what is measured are not the same.
        assert 0.98 < control / seconds(schedule, machine, workload, steps=200) < 2 / 1.7 * 1.02


def test_the_naive_control_has_one_group_under_way_and_pads_its_batches() -> None:
    result = simulate(naive(3), replace(EVEN, prefill_s=0.1), work(10, 40, env_s=2.0))
    assert result.concurrency == 1.0
    # Two rows of 40 tokens, two prompts, the environment; three times, then training.
    assert result.seconds_per_step == pytest.approx(3 * (0.8 + 0.2 + 2.0) + 1.0)
    assert simulate(strong(3), EVEN, work(10, 40, env_s=2.0)).concurrency > 2


def test_dropped_groups_cost_what_they_were_drawn_for() -> None:
    machine = replace(EVEN, train_s=1e-6)
    whole = Workload(group_size=4, mean_tokens=25)
    for schedule, half in (
        (inflight(8, 2), inflight(8, 2)),
        (pinned(8, 2), pinned(8, 2, keep=0.5)),
        (strong(8), strong(8, keep=0.5)),
    ):
        full = simulate(schedule, machine, whole, steps=200)
        dropping = simulate(half, machine, replace(whole, keep=0.5), steps=200)
        assert dropping.seconds_per_group == pytest.approx(2 * full.seconds_per_group, rel=0.1)
        assert dropping.drawn_per_trained == pytest.approx(2.0, rel=0.1)
        assert full.drawn_per_trained == 1.0


def test_a_window_overtakes_a_slow_group_and_then_waits_for_it() -> None:
    def slow(ordinal: int) -> GroupWork:
        return GroupWork(tokens=(1.0,), env_s=(1000.0 if ordinal == 4 else 0.0,))

    def trained(window: int) -> Result:
        return simulate(inflight(1, 7, window=window), EVEN, slow, steps=20, warm_up=0)

    for window, late in ((1, 0), (3, 2), (6, 5)):
        groups = trained(window).groups
        assert groups[4].step == 4 + late
        assert max(one.age for one in groups) <= 7 + late


def test_versions_every_few_steps_lift_the_bound_on_admission_together() -> None:
    # Half a version's worth of 4 x 2 groups may be ahead: 12 are under way, and 8 more follow a version.
    schedule = replace(inflight(2, 0.5, window=100), publish_every=4)
    assert schedule.capacity == 12
    groups = simulate(schedule, EVEN, work(1.0), steps=40, warm_up=0).groups
    assert sum(one.version == 0 for one in groups) == 12
    assert {sum(one.version == version for one in groups) for version in range(1, 8)} == {8}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: replace(pinned(4, 1), lag=1.5),
        lambda: replace(pinned(4, 1), publish_every=2),
        lambda: inflight(0, 1),
        lambda: inflight(4, -1),
        lambda: inflight(4, 1, window=0),
    ],
)
def test_schedules_that_mean_nothing_are_refused(wrong: Callable[[], Schedule]) -> None:
    with pytest.raises(HerdError, match="lag"):
        wrong()


def test_equal_seeds_give_equal_runs_and_a_group_does_not_depend_on_those_before() -> None:
    workload = Workload(group_size=3, mean_tokens=9, token_sigma=1.0, latency_s=1.0, max_tokens=20, keep=0.5, seed=4)
    first, second = (simulate(inflight(2, 2), EVEN, workload, steps=30) for _ in range(2))
    assert first == second
    assert workload(7) == workload(7) != replace(workload, seed=5)(7)
    alike = replace(workload, token_sigma=0.0, group_sigma=1.0, max_tokens=math.inf, mean_tokens=50.0)
    assert all(len(set(alike(ordinal).tokens)) == 1 for ordinal in range(9))
    drawn = [alike(ordinal).tokens[0] for ordinal in range(5000)]
    assert np.log(drawn).std() == pytest.approx(1.0, rel=0.05) and np.mean(drawn) == pytest.approx(50, rel=0.1)
    tokens = [token for ordinal in range(300) for token in workload(ordinal).tokens]
    assert min(tokens) >= 1 and max(tokens) == 20
