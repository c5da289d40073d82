"""Who may be drawn next, by which weights, and what a step is trained on. Pure: no torch, no clock, no thread.

A ledger is given what happened and answers what may happen now. There are two:

* `Waves`, modes `sync` and `pinned`: wave w holds the groups of step w, all drawn by version max(0, w - lag), where
  version v is the weights after v steps. A step is trained on all groups of its wave whose rewards differ. A wave
  without any is drawn on, round after round, before its version is replaced. How many groups a wave needs is known
  from the waves before: the first one alone is drawn on until it has half of a step's groups, and the second one waits
  for it. What is drawn and trained is a function of the results alone, whatever the timing; lag 0 is `sync`.
* `Window`, mode `inflight`: as many groups are under way as lag + 1 steps train, and a group's place is free again
  when it was trained or dropped, so none gets old and none is dropped for its age (TitanRL). A step is trained on the
  first groups that are done among the oldest `window` ones; it may overtake a slow group, but not for long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import takewhile
from typing import Protocol

MAX_ROUNDS = 20
"""Rounds of a wave, or steps' worth of groups in a row, without any whose rewards differ, before a run ends."""


@dataclass(frozen=True, kw_only=True)
class Deal:
    """Groups to be admitted now."""

    wave: int
    """The step that they are meant for; in a window, the one that is picked next."""
    round: int
    """How often the wave was dealt before."""
    count: int
    """How many; in waves, how many with signal are wanted: as many are admitted as are expected to give them."""
    version: int
    """The weights that are to draw them, or the oldest that may."""


class Ledger(Protocol):
    """What the modes have in common. Ordinals are given in the order of admission."""

    def next_deal(self) -> Deal | None:
        """What may be admitted now; None: nothing, before something else happens."""

    def admit(self, ordinals: Sequence[int], deal: Deal) -> None: ...

    def finish(self, ordinal: int, *, has_signal: bool) -> None:
        """A group is done; without signal it is dropped."""

    def drop(self, ordinal: int) -> None:
        """A group will not be done."""

    def publish(self, version: int) -> None:
        """The step before this version was trained."""

    def next_pick(self) -> tuple[int, tuple[int, ...]] | None:
        """The next step and the ordinals that it is trained on, ascending, once they are known."""

    def pick(self, step: int, ordinals: Sequence[int]) -> None:
        """A step is trained on these: what `next_pick` gave, or what a journal has."""

    def settled(self) -> int:
        """Waves whose results so far may influence what is dealt now: no timing decides which these are."""

    @property
    def is_starved(self) -> bool:
        """Whether MAX_ROUNDS have had no group whose rewards differ."""


@dataclass(kw_only=True)
class Wave:
    """The groups of a step, by what has become of them."""

    open: set[int] = field(default_factory=set)
    kept: list[int] = field(default_factory=list)
    rounds: int = 0


class Waves:
    """See the module; `lag` 0 is `sync`."""

    def __init__(self, *, num_steps: int, lag: int, groups: int, version: int = 0) -> None:
        self.num_steps, self.lag, self.groups, self.version = num_steps, lag, groups, version
        self.waves: list[Wave] = []
        self._of: dict[int, int] = {}
        self._picked = 0

    def next_deal(self) -> Deal | None:
        wave = self._next_wave()
        # One that is dealt again is done first, and the first one before the second is dealt.
        if (wave < len(self.waves) or wave == 1) and self.waves[-1].open:
            return None
        if wave >= self.num_steps or self.version < (version := max(0, wave - self.lag)):
            return None
        before = self.waves[wave] if wave < len(self.waves) else Wave()
        return Deal(wave=wave, round=before.rounds, count=self.groups - len(before.kept), version=version)

    def _next_wave(self) -> int:
        """The wave that is dealt next: the last one while it has too few."""
        return len(self.waves) - (bool(self.waves) and self._lacks(len(self.waves) - 1))

    def _lacks(self, wave: int) -> bool:
        """Whether a wave has too few groups to be left."""
        kept, rounds = len(self.waves[wave].kept), self.waves[wave].rounds
        return not kept or (wave == 0 and 2 * kept < self.groups and rounds < MAX_ROUNDS)

    def admit(self, ordinals: Sequence[int], deal: Deal) -> None:
        if deal.wave == len(self.waves):
            self.waves.append(Wave())
        wave = self.waves[deal.wave]
        assert wave.rounds == deal.round and not wave.open, "a wave is dealt again when it has too few"
        wave.rounds += 1
        wave.open.update(ordinals)
        self._of |= dict.fromkeys(ordinals, deal.wave)

    def finish(self, ordinal: int, *, has_signal: bool) -> None:
        wave = self.waves[self._of[ordinal]]
        wave.open.remove(ordinal)
        if has_signal:
            wave.kept.append(ordinal)

    def drop(self, ordinal: int) -> None:
        self.finish(ordinal, has_signal=False)

    def publish(self, version: int) -> None:
        assert version == self.version + 1, f"version {version} after {self.version}"
        self.version = version

    def next_pick(self) -> tuple[int, tuple[int, ...]] | None:
        step = self._picked
        if step < len(self.waves) and not (self.waves[step].open or self._lacks(step)):
            return step, tuple(sorted(self.waves[step].kept))
        return None

    def pick(self, step: int, ordinals: Sequence[int]) -> None:
        assert self.next_pick() == (step, tuple(ordinals)), f"step {step} is trained on its whole wave"
        self._picked += 1

    def settled(self) -> int:
        # Those before the version that draws the next wave: it exists, so they were trained on. And the first one,
        # which is done when it or another is dealt.
        return min(len(self.waves), max(1, self._next_wave() - self.lag))

    @property
    def is_starved(self) -> bool:
        return any(wave.rounds >= MAX_ROUNDS and not (wave.open or wave.kept) for wave in self.waves[self._picked :])


class State(Enum):
    """What has become of a group."""

    OPEN, DONE, PICKED = range(3)


class Window:
    """See the module. The window begins with the oldest group that is not done; at 1 the order is strict."""

    def __init__(self, *, num_steps: int, lag: int, groups: int, window: int, version: int = 0) -> None:
        self.num_steps, self.lag, self.groups, self.window = num_steps, lag, groups, window
        self.version = version
        self._line: dict[int, State] = {}
        """Admitted and not dropped, in their order, from the oldest that is not picked on."""
        self._untrained: dict[int, int] = {}
        """Groups of the steps that were picked and are not trained yet."""
        self._picked = self._barren = self._num_open = 0

    @property
    def max_age(self) -> int:
        """Steps from a group's admission to its training, at most."""
        return self.lag + -(-(self.window - 1) // self.groups)

    def next_deal(self) -> Deal | None:
        remaining = self.num_steps - self._picked
        under_way = self._num_open + sum(self._untrained.values())
        room = min((self.lag + 1) * self.groups - under_way, remaining * self.groups - self._num_open)
        if room <= 0:
            return None
        return Deal(wave=self._picked, round=0, count=room, version=self.version)

    def admit(self, ordinals: Sequence[int], deal: Deal) -> None:
        self._line |= dict.fromkeys(ordinals, State.OPEN)
        self._num_open += len(ordinals)

    def finish(self, ordinal: int, *, has_signal: bool) -> None:
        if has_signal:
            self._line[ordinal], self._barren = State.DONE, 0
        else:
            self.drop(ordinal)

    def drop(self, ordinal: int) -> None:
        del self._line[ordinal]
        self._num_open -= 1
        self._barren += 1
        self._advance()

    def publish(self, version: int) -> None:
        assert version == self.version + 1, f"version {version} after {self.version}"
        self.version = version
        self._untrained.pop(version - 1, None)

    def next_pick(self) -> tuple[int, tuple[int, ...]] | None:
        if self._picked == self.num_steps:
            return None
        done: list[int] = []
        room: int | None = None
        for ordinal, state in self._line.items():
            if state is State.OPEN and room is None:
                room = self.window
            if room == 0:
                break
            if state is State.DONE:
                done.append(ordinal)
            if len(done) == self.groups:
                return self._picked, tuple(done)
            # Those that were picked count too: else a slow group could be overtaken for ever.
            room = None if room is None else room - 1
        return None

    def pick(self, step: int, ordinals: Sequence[int]) -> None:
        assert step == self._picked, f"step {step} after {self._picked}"
        for ordinal in ordinals:
            assert self._line[ordinal] is State.DONE, f"group {ordinal} is not done"
            self._line[ordinal] = State.PICKED
        self._num_open -= len(ordinals)
        self._picked += 1
        if self.version <= step:
            self._untrained[step] = len(ordinals)
        self._advance()

    def _advance(self) -> None:
        """Forget those that were picked before the oldest that is not."""
        for ordinal in list(takewhile(lambda one: self._line[one] is State.PICKED, self._line)):
            del self._line[ordinal]

    def settled(self) -> int:
        return self._picked

    @property
    def is_starved(self) -> bool:
        return self._barren >= MAX_ROUNDS * self.groups
