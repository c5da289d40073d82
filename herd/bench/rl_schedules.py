"""The two ways to admit groups and to put steps together, for rl_sim.py, which describes them.

They are those of herd/rl/ledger.py, for groups that are admitted one by one; tests hold each decision to it.
"""

from dataclasses import dataclass
from itertools import takewhile

from herd.bench.rl_model import GroupWork, Schedule
from herd.rl.ledger import MAX_ROUNDS


@dataclass(kw_only=True)
class Group:
    """One that was admitted."""

    ordinal: int
    version: int
    """Of the engine, then."""
    last_version: int
    """Of the engine, when its last token so far was drawn."""
    wave: int
    work: GroupWork
    to_draw: int
    """Members that are not drawn to their end."""
    to_judge: int
    """Members that are not judged."""
    step: int | None = None
    """That it was trained in."""
    age: int = 0
    """Versions between its admission and its step."""
    dropped: bool = False


class Waves:
    """Admission and batches of a pinned schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.lag = schedule, int(schedule.lag)
        self._waves: list[list[Group]] = []
        self._trained = 0

    def next_wave(self, version: int) -> int | None:
        """The wave of the next group to be admitted."""
        number = len(self._waves) - 1
        last = self._waves[-1] if self._waves else []
        if len(last) % self.schedule.wave:
            return number
        lacks = bool(last) and self._lacks(number)
        if (lacks or number == 0) and any(one.to_judge for one in last):
            return None
        if lacks:
            return number
        return len(self._waves) if len(self._waves) <= version + self.lag else None

    def _lacks(self, number: int) -> bool:
        """Whether too few groups of a wave are known to have signal."""
        wave, of_step = self._waves[number], self.schedule.groups_per_step
        if number:
            return not any(not one.to_judge and not one.dropped for one in wave)
        kept = sum(not one.to_judge and not one.dropped for one in wave)
        return not kept or (2 * kept < of_step and len(wave) < MAX_ROUNDS * self.schedule.wave)

    def admit(self, group: Group) -> None:
        if group.wave == len(self._waves):
            self._waves.append([])
        self._waves[group.wave].append(group)

    def judged(self, group: Group) -> None: ...

    def takes(self, version: int) -> bool:
        """Whether the engine may have the weights after `version`."""
        wave = version + self.lag
        if len(self._waves) <= wave:
            return False
        drawing = any(one.to_draw for groups in self._waves[self._trained :] for one in groups)
        return not self._lacks(wave) and not drawing

    def next_batch(self) -> list[Group] | None:
        """Taken out."""
        if self._trained == len(self._waves):
            return None
        wave = self._waves[self._trained]
        if any(one.to_judge for one in wave) or len(wave) % self.schedule.wave or self._lacks(self._trained):
            return None
        self._trained += 1
        return [one for one in wave if not one.dropped]

    def publish(self, num_groups: int) -> None: ...


class Window:
    """Admission and batches of a schedule with weights in flight."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._under_way = 0
        self._line: dict[int, Group] = {}
        """Admitted and not dropped, by ordinal, from the oldest that is not picked on."""
        self._picked: set[int] = set()
        """Of those, which are in a batch."""
        self._num_done = 0
        """Of those, how many are judged and not picked."""
        self._next: list[Group] = []
        """A batch that is ready while the one before is trained."""

    def next_wave(self, version: int) -> int | None:
        return 0 if self._under_way < self.schedule.capacity else None

    def admit(self, group: Group) -> None:
        self._under_way += 1
        self._line[group.ordinal] = group

    def judged(self, group: Group) -> None:
        if group.dropped:
            self._under_way -= 1
            del self._line[group.ordinal]
        else:
            self._num_done += 1
        self.pick()

    def pick(self) -> None:
        """Form the next batch, if there is none and enough of the window is judged."""
        if self._next or self._num_done < self.schedule.groups_per_step:
            return
        done: list[Group] = []
        room: int | None = None
        for ordinal, group in self._line.items():
            if group.to_judge and room is None:
                room = self.schedule.window
            if room == 0 or len(done) == self.schedule.groups_per_step:
                break
            if not group.to_judge and ordinal not in self._picked:
                done.append(group)
            room = None if room is None else room - 1
        if len(done) == self.schedule.groups_per_step:
            self._next = done
            self._num_done -= len(done)
            self._picked.update(one.ordinal for one in done)
            for ordinal in list(takewhile(self._picked.__contains__, self._line)):
                del self._line[ordinal]
                self._picked.remove(ordinal)

    def takes(self, version: int) -> bool:
        return True

    def next_batch(self) -> list[Group] | None:
        batch, self._next = self._next, []
        self.pick()
        return batch or None

    def publish(self, num_groups: int) -> None:
        self._under_way -= num_groups
