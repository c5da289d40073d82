"""The lengths that are trained on are those that were drawn, though long answers take longer: a simulated clock over
the ledgers, and a ledger that drops what is old as the control."""

import functools
import heapq
import math
from collections.abc import Sequence
from itertools import count

import numpy as np
import pytest

from herd.core.streams import stream
from herd.rl.ledger import Deal, Ledger, Waves, Window

GROUPS, NUM_STEPS = 8, 300
STEP_S = 0.5
"""What training a step takes."""


class Dropping(Window):
    """Gives up what is older than `lag` steps when it is done, as others do, and draws something else."""

    def __init__(self, *, num_steps: int, lag: int) -> None:
        super().__init__(num_steps=num_steps, lag=lag, groups=GROUPS, window=10**6)
        self._newest: dict[int, int] = {}

    def admit(self, ordinals: Sequence[int], deal: Deal) -> None:
        super().admit(ordinals, deal)
        self._newest |= dict.fromkeys(ordinals, self.version)

    def finish(self, ordinal: int, *, has_signal: bool) -> None:
        if self.version - self._newest[ordinal] > self.lag:
            self.drop(ordinal)
        else:
            super().finish(ordinal, has_signal=has_signal)


@functools.cache
def draw_group(ordinal: int, seed: int) -> tuple[float, float, bool]:
    """Length, seconds until it is done, and whether its rewards differ, which has nothing to do with the others."""
    rng = stream(seed, "group", ordinal)
    length = math.exp(4 + 0.8 * rng.standard_normal())
    return length, 0.05 * length * math.exp(0.5 * rng.standard_normal()), rng.random() < 0.7


def simulate(ledger: Ledger, seed: int) -> tuple[list[float], list[float]]:
    """Lengths of the groups of the first half of the steps, and of all groups with a signal that were admitted before
    the last of these."""
    now, numbers = 0.0, count()
    events: list[tuple[float, int, int | None]] = []  # when, in which order, the group; None: a step is trained
    waiting: list[int] = []
    trained: list[int] = []
    is_training, version = False, 0
    while version < NUM_STEPS:
        while (found := ledger.next_pick()) is not None:
            step, ordinals = found
            ledger.pick(step, ordinals)
            trained += ordinals
            waiting.append(step)
        while (deal := ledger.next_deal()) is not None:
            ordinals = [next(numbers) for _ in range(deal.count)]
            ledger.admit(ordinals, deal)
            for ordinal in ordinals:
                heapq.heappush(events, (now + draw_group(ordinal, seed)[1], ordinal, ordinal))
        if waiting and not is_training:
            waiting.pop(0)
            is_training = True
            heapq.heappush(events, (now + STEP_S, -1, None))
        now, _, ordinal = heapq.heappop(events)
        if ordinal is None:
            is_training, version = False, version + 1
            ledger.publish(version)
        else:
            ledger.finish(ordinal, has_signal=draw_group(ordinal, seed)[2])
    # In the second half all that was admitted is trained in the end.
    half = trained[: len(trained) // 2]
    admitted = [one for one in range(max(half) + 1) if draw_group(one, seed)[2]]
    return [draw_group(one, seed)[0] for one in half], [draw_group(one, seed)[0] for one in admitted]


def p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Of the two-sample Kolmogorov-Smirnov test, by the limit of its distribution."""
    xs, ys = np.sort(first), np.sort(second)
    every = np.concatenate([xs, ys])
    distance = np.abs(
        np.searchsorted(xs, every, side="right") / len(xs) - np.searchsorted(ys, every, side="right") / len(ys)
    ).max()
    scaled = distance * math.sqrt(len(xs) * len(ys) / (len(xs) + len(ys)))
    terms = [(-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101)]
    return min(1.0, 2 * sum(terms)) if scaled > 0.2 else 1.0


def window(lag: int) -> Window:
    """With the share of groups that may be overtaken which is the default."""
    return Window(num_steps=NUM_STEPS, lag=lag, groups=GROUPS, window=max(1, int(0.3 * (lag + 1) * GROUPS)))


@pytest.mark.parametrize("lag", [1, 4])
@pytest.mark.parametrize("mode", ["pinned", "inflight"])
def test_trained_lengths_are_the_drawn_ones(mode: str, lag: int) -> None:
    for seed in range(5):
        ledger = Waves(num_steps=NUM_STEPS, lag=lag, groups=GROUPS) if mode == "pinned" else window(lag)
        trained, admitted = simulate(ledger, seed)
        assert len(trained) > 800
        assert p_value(trained, admitted) > 0.05


@pytest.mark.parametrize("lag", [1, 4])
def test_a_ledger_that_drops_what_is_old_trains_on_shorter_answers(lag: int) -> None:
    for seed in range(5):
        trained, admitted = simulate(Dropping(num_steps=NUM_STEPS, lag=lag), seed)
        assert p_value(trained, admitted) < 0.01
        assert np.mean(trained) < 0.9 * np.mean(admitted)


def test_the_p_value_is_that_of_the_tables_and_uniform_where_nothing_differs() -> None:
    # Smirnov's table: the distance of 1.36 sqrt(2 / n) has 5 %, of 1.63 sqrt(2 / n) 1 %.
    n = 10_000
    for scaled, wanted in ((1.3581, 0.05), (1.6276, 0.01)):
        shift = scaled * math.sqrt(2 / n)
        assert p_value(np.arange(n) / n, np.arange(n) / n + shift) == pytest.approx(wanted, rel=0.05)
    rng = np.random.default_rng(0)
    values = [p_value(rng.random(300), rng.random(400)) for _ in range(400)]
    assert np.mean(np.array(values) < 0.05) == pytest.approx(0.05, abs=0.03)
