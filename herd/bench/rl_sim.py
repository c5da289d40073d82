"""A discrete-event model of reinforcement learning: who waits for whom, and what a trained group costs in seconds.

No clock and no torch. Groups of rollouts are admitted, drawn by an engine, judged by an environment and trained in
batches of P groups; a group without signal is dropped.

The engine is a processor that its rollouts share: a step with n of them takes `fixed_s + n * token_s`, and each gets
a token. So one number is followed, the tokens that a rollout would have that had been there from the beginning
(virtual time, as in fair queueing); an answer of k tokens ends k later than it began. Prompts and new weights stop it.

  pinned    wave w, the groups of step w, is drawn by version max(0, w - lag); version v + 1 goes into the engine when
            all tokens of wave v + lag are drawn. A wave follows when one group of the last is known to have signal
            (else that one is drawn on), the second one when the first is done and has half of a step's groups. A step
            is trained on the whole of its wave. Lag 0 is synchronous
  inflight  at most (lag + 1) P groups are under way, from admission to the version that has learnt from them. Trained
            next are the first P that are judged, in their order, among the `window` groups from the oldest on that is
            not. Weights arrive between two steps of the engine

Both are the modes of herd/rl/ledger.py. Left out: failures, several engines that are unevenly loaded, room for
the cache, evaluation, checkpoints; a step of training takes a constant time a group.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import inf

from herd.bench.rl_model import GroupWork, Machine, Schedule
from herd.bench.rl_schedules import Group, Waves, Window


@dataclass(frozen=True, kw_only=True)
class Result:
    """Of the steps after the warm-up."""

    seconds_per_step: float
    seconds_per_group: float
    """Of the groups that were trained."""
    trainer_wait: float
    """Share of the time in which the trainer has nothing to do."""
    engine_idle: float
    mean_age: float
    max_age: int
    concurrency: float
    """Mean groups in engine and environment, while there are any."""
    groups: list[Group] = field(repr=False)
    """All, from the first step on."""

    @property
    def drawn_per_trained(self) -> float:
        """Groups that are judged, for each that is trained."""
        judged = sum(one.to_judge == 0 for one in self.groups)
        return judged / sum(one.to_judge == 0 and not one.dropped for one in self.groups)


class Engine:
    """Rollouts that share a processor."""

    def __init__(self, machine: Machine, padded: bool) -> None:
        self.machine, self.padded = machine, padded
        self.blocked = self.virtual = 0.0
        self._queue: deque[tuple[float, Group, int]] = deque()
        self._running: list[tuple[float, int, Group, int]] = []
        self._count = 0

    @property
    def busy(self) -> bool:
        return bool(self._running or self.blocked)

    def add(self, group: Group) -> None:
        tokens = group.work.tokens
        prompts = len(tokens) if self.padded else 1
        self.blocked += self.machine.prefill_s * prompts
        longest = max(tokens)
        self._queue.extend((longest if self.padded else length, group, i) for i, length in enumerate(tokens))
        self._fill()

    def _fill(self) -> None:
        while self._queue and len(self._running) < self.machine.slots:
            length, group, member = self._queue.popleft()
            self._count += 1  # earlier ones first among equals
            heapq.heappush(self._running, (self.virtual + length, self._count, group, member))

    def _step_s(self) -> float:
        return self.machine.fixed_s + len(self._running) * self.machine.token_s

    def next_event(self) -> float:
        """Seconds of work until it is free to go on, or a rollout ends."""
        if self.blocked:
            return self.blocked
        return (self._running[0][0] - self.virtual) * self._step_s() if self._running else inf

    def advance(self, work_s: float) -> list[tuple[Group, int]]:
        """Do this much work, at most up to the next event; the rollouts that end."""
        if work_s < self.next_event():
            if self.blocked:
                self.blocked -= work_s
            elif self._running:
                self.virtual += work_s / self._step_s()
            return []
        if self.blocked:
            self.blocked = 0.0
            return []
        self.virtual = self._running[0][0]
        ended = []
        while self._running and self._running[0][0] <= self.virtual:
            _, _, group, member = heapq.heappop(self._running)
            ended.append((group, member))
        self._fill()
        return ended


def engine_steps(machine: Machine, groups: Iterable[GroupWork]) -> float:
    """Steps in which the engine draws `groups`, all there at once."""
    engine = Engine(replace(machine, fixed_s=1.0, token_s=0.0, prefill_s=0.0), padded=False)
    for ordinal, work in enumerate(groups):
        size = len(work.tokens)
        engine.add(Group(ordinal=ordinal, version=0, last_version=0, wave=0, work=work, to_draw=size, to_judge=size))
    while engine.busy:
        engine.advance(inf)
    return engine.virtual


def calibrate(machine: Machine, groups: Iterable[GroupWork], *, draw_s: float, fixed_share: float) -> Machine:
    """The machine whose engine draws `groups`, all there at once, in `draw_s`; `fixed_share` of it is `fixed_s`."""
    groups = list(groups)
    num_steps = engine_steps(machine, groups)
    rest = draw_s - machine.prefill_s * len(groups)
    fixed_s, token_s = (
        fixed_share * rest / num_steps,
        (1 - fixed_share) * rest / sum(sum(w.tokens) for w in groups),
    )
    return replace(machine, fixed_s=fixed_s, token_s=token_s)


def simulate(
    schedule: Schedule, machine: Machine, group: Callable[[int], GroupWork], *, steps: int = 100, warm_up: int = 20
) -> Result:
    """Train `steps` batches after `warm_up` others; `group` gives each group's work by its ordinal."""
    return _Simulation(schedule, machine, group).run(steps, warm_up)


class _Simulation:
    def __init__(self, schedule: Schedule, machine: Machine, work: Callable[[int], GroupWork]) -> None:
        self.schedule, self.machine, self.work = schedule, machine, work
        self.ledger = Waves(schedule) if schedule.kind == "pinned" else Window(schedule)
        self.engine = Engine(machine, schedule.padded)
        self.environment: list[tuple[float, int, Group]] = []
        self.groups: list[Group] = []
        self.now = self.training_s = 0.0
        self.batch: list[Group] = []
        self.trained = self.version = self.engine_version = 0
        self.unpublished = self.judging = self.busy_groups = 0
        self.changed = True  # so that something may start
        self.spent = dict.fromkeys(("trainer", "engine", "groups", "any"), 0.0)

    def run(self, steps: int, warm_up: int) -> Result:
        begin, before = 0.0, dict(self.spent)
        while self.trained < warm_up + steps:
            already = self.trained
            if self.changed:
                self.changed = False
                self.start()
            self.advance()
            if already < warm_up == self.trained:
                begin, before = self.now, dict(self.spent)
        seconds = self.now - begin
        spent = {name: value - before[name] for name, value in self.spent.items()}
        trained = [one for one in self.groups if one.step is not None and warm_up <= one.step < self.trained]
        return Result(
            seconds_per_step=seconds / steps, seconds_per_group=seconds / len(trained),
            trainer_wait=max(0.0, 1 - spent["trainer"] / seconds), engine_idle=max(0.0, 1 - spent["engine"] / seconds),
            mean_age=sum(one.age for one in trained) / len(trained), max_age=max(one.age for one in trained),
            concurrency=spent["groups"] / spent["any"], groups=self.groups,
        )  # fmt: skip

    def start(self) -> None:
        """Whatever may start now."""
        while True:
            while self.engine_version < self.version and self.ledger.takes(self.engine_version):
                self.engine_version += 1
                self.engine.blocked += self.machine.publish_s
            full = self.busy_groups >= self.schedule.max_groups
            if full or (wave := self.ledger.next_wave(self.engine_version)) is None:
                break
            self._admit(wave)
        if not self.batch and (batch := self.ledger.next_batch()):
            self.batch = batch
            self.training_s = self.machine.train_s * len(batch) / self.schedule.groups_per_step
            if (self.trained + 1) % self.schedule.publish_every == 0:
                self.training_s += self.machine.publish_s
            for one in batch:
                one.step, one.age = self.trained, self.version - one.version

    def _admit(self, wave: int) -> None:
        work, version = self.work(len(self.groups)), self.engine_version
        size = len(work.tokens)
        group = Group(
            ordinal=len(self.groups), version=version, last_version=version, wave=wave, work=work,
            to_draw=size, to_judge=size,
        )  # fmt: skip
        self.groups.append(group)
        self.ledger.admit(group)
        self.engine.add(group)
        self.busy_groups += 1

    def advance(self) -> None:
        """To the next event."""
        engine_speed = 1.0 if self.batch else self.machine.alone
        trainer_speed = 1.0 if self.engine.busy else self.machine.alone
        engine_s = self.engine.next_event() / engine_speed
        trainer_s = self.training_s / trainer_speed if self.batch else inf
        environment_s = self.environment[0][0] - self.now if self.environment else inf
        seconds = max(0.0, min(engine_s, trainer_s, environment_s))
        assert seconds < inf, "nothing can happen any more"
        for name, is_spent in (("trainer", self.batch), ("engine", self.engine.busy), ("any", self.busy_groups)):
            self.spent[name] += seconds if is_spent else 0.0
        self.spent["groups"] += seconds * self.busy_groups
        self.now += seconds
        for group, member in self.engine.advance(inf if seconds >= engine_s else seconds * engine_speed):
            group.to_draw -= 1
            group.last_version = self.engine_version
            self.changed |= group.to_draw == 0
            if env_s := group.work.env_s[member]:
                self.judging += 1
                heapq.heappush(self.environment, (self.now + env_s, self.judging, group))
            else:
                self._judge(group)
        while self.environment and self.environment[0][0] <= self.now:
            self._judge(heapq.heappop(self.environment)[2])
        self.training_s -= seconds * trainer_speed if self.batch else 0.0
        if self.batch and seconds >= trainer_s:
            self._finish_step()

    def _judge(self, group: Group) -> None:
        group.to_judge -= 1
        if group.to_judge == 0:
            self.changed = True
            group.dropped = not group.work.has_signal
            self.busy_groups -= 1
            self.ledger.judged(group)

    def _finish_step(self) -> None:
        self.changed = True
        self.trained += 1
        self.unpublished += len(self.batch)
        self.batch = []
        if self.trained % self.schedule.publish_every == 0:
            self.version += 1
            self.ledger.publish(self.unpublished)
            self.unpublished = 0
