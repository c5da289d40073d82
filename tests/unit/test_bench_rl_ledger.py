"""The simulator's schedules decide as the ledger of real runs does, event by event."""

from typing import Any

import numpy as np
import pytest

from herd.bench import rl_sim
from herd.bench.rl_model import Machine, Schedule, Workload, inflight, pinned, strong
from herd.bench.rl_schedules import Group, Waves, Window
from herd.rl import ledger

MANY = 10**6


class CheckedWindow(Window):
    """Asks the real one too."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.real = ledger.Window(
            num_steps=MANY, lag=int(schedule.lag), groups=schedule.groups_per_step, window=int(schedule.window)
        )
        self.num_picks = 0

    def next_wave(self, version: int) -> int | None:
        found, deal = super().next_wave(version), self.real.next_deal()
        assert (found is None) == (deal is None)
        assert deal is None or deal.version == version
        return found

    def admit(self, group: Group) -> None:
        deal = self.real.next_deal()
        assert deal is not None
        self.real.admit([group.ordinal], deal)
        super().admit(group)

    def judged(self, group: Group) -> None:
        self.real.finish(group.ordinal, has_signal=not group.dropped)
        super().judged(group)

    def pick(self) -> None:
        before = self._next
        super().pick()
        if not before:
            picked = self.real.next_pick()
            assert (picked is None) == (not self._next)
            if picked is not None:
                assert picked[1] == tuple(one.ordinal for one in self._next)
                self.real.pick(*picked)
                self.num_picks += 1

    def publish(self, num_groups: int) -> None:
        self.real.publish(self.real.version + 1)
        super().publish(num_groups)


class CheckedWaves(Waves):
    """Asks the real one too, a whole wave at a time."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.real = ledger.Waves(num_steps=MANY, lag=int(schedule.lag), groups=schedule.groups_per_step)
        self.dealt: list[Group] = []
        self.num_picks = 0

    def admit(self, group: Group) -> None:
        self.dealt.append(group)
        if len(self.dealt) == self.schedule.wave:
            deal = self.real.next_deal()
            assert deal is not None and (deal.wave, deal.version) == (group.wave, group.version)
            self.real.admit([one.ordinal for one in self.dealt], deal)
            self.dealt = []
        super().admit(group)

    def judged(self, group: Group) -> None:
        self.real.finish(group.ordinal, has_signal=not group.dropped)
        super().judged(group)

    def next_batch(self) -> list[Group] | None:
        batch, picked = super().next_batch(), self.real.next_pick()
        assert (batch is None) == (picked is None)
        if batch is not None and picked is not None:
            assert tuple(one.ordinal for one in batch) == picked[1]
            self.real.pick(*picked)
            self.num_picks += 1
        return batch

    def publish(self, num_groups: int) -> None:
        self.real.publish(self.real.version + 1)
        super().publish(num_groups)


@pytest.mark.parametrize("kind", ["pinned", "inflight"])
def test_each_decision_is_the_ledgers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Any] = []

    def watched(of: type) -> Any:
        def make(schedule: Schedule) -> Any:
            checked.append(of(schedule))
            return checked[-1]

        return make

    monkeypatch.setattr(rl_sim, "Window", watched(CheckedWindow))
    monkeypatch.setattr(rl_sim, "Waves", watched(CheckedWaves))
    for seed in range(300):
        rng = np.random.default_rng(seed)
        of_step, lag, keep = int(rng.integers(1, 5)), int(rng.integers(5)), float(rng.choice([1.0, 0.5]))
        schedule = (
            inflight(of_step, lag, window=int(rng.integers(1, 12)))
            if kind == "inflight"
            else (pinned(of_step, lag, keep=keep) if lag else strong(of_step, keep=keep))
        )
        machine = Machine(
            fixed_s=0.05, token_s=0.02, train_s=float(rng.choice([0.01, 1.0])), slots=float(rng.choice([2, 100])),
            publish_s=float(rng.choice([0.0, 0.1])),
        )  # fmt: skip
        workload = Workload(
            group_size=2, mean_tokens=4, token_sigma=1.0, latency_s=float(rng.choice([0.0, 2.0])), keep=keep, seed=seed
        )
        rl_sim.simulate(schedule, machine, workload, steps=12, warm_up=0)
        assert checked[-1].num_picks >= 12
