"""The two ways to admit groups and to put steps together, for rl_sim.py, which describes them."""

from collections import deque
from dataclasses import dataclass

from herd.bench.rl_model import GroupWork, Schedule


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


def has_kept(groups: list[Group]) -> bool:
    """Whether one is known to have signal."""
    return any(not one.to_judge and not one.dropped for one in groups)


class Waves:
    """Admission and batches of a pinned schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.lag = schedule, int(schedule.lag)
        self._waves: list[list[Group]] = []
        self._trained = 0

    def next_wave(self, version: int) -> int | None:
        """The wave of the next group to be admitted."""
        last = self._waves[-1] if self._waves else []
        if len(last) % self.schedule.wave or (last and all(one.dropped for one in last)):
            return len(self._waves) - 1
        if last and not has_kept(last):
            return None
        return len(self._waves) if len(self._waves) <= version + self.lag else None

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
        return has_kept(self._waves[wave]) and not drawing

    def next_batch(self) -> list[Group] | None:
        """Taken out."""
        if self._trained == len(self._waves):
            return None
        wave = self._waves[self._trained]
        if any(one.to_judge for one in wave) or len(wave) % self.schedule.wave or not has_kept(wave):
            return None
        self._trained += 1
        return [one for one in wave if not one.dropped]

    def publish(self, num_groups: int) -> None: ...


class Window:
    """Admission and batches of a schedule with weights in flight."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._under_way = 0
        self._open: deque[Group] = deque()  # from the oldest on that is neither picked nor dropped
        self._picked: deque[Group] = deque()
        self._ready: dict[int, Group] = {}  # judged, not picked

    def next_wave(self, version: int) -> int | None:
        return 0 if self._under_way < self.schedule.capacity else None

    def admit(self, group: Group) -> None:
        self._under_way += 1
        self._open.append(group)

    def judged(self, group: Group) -> None:
        if group.dropped:
            self._under_way -= 1
        else:
            self._ready[group.ordinal] = group
        while True:
            while self._open and not self._open[0].to_judge and self._open[0].ordinal not in self._ready:
                self._open.popleft()
            end = self._open[0].ordinal + self.schedule.window if self._open else 0
            picked = [ordinal for ordinal in self._ready if ordinal < end]
            if not picked:
                return
            self._picked.extend(self._ready.pop(ordinal) for ordinal in picked)

    def takes(self, version: int) -> bool:
        return True

    def next_batch(self) -> list[Group] | None:
        if len(self._picked) < self.schedule.groups_per_step:
            return None
        return [self._picked.popleft() for _ in range(self.schedule.groups_per_step)]

    def publish(self, num_groups: int) -> None:
        self._under_way -= num_groups
