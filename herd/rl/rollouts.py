"""Draws the groups of a run: deals, admits, draws, writes down, picks. In a thread of its own, on an event loop, beside
the training, which gives it weights (`publish`) and takes the groups of a step (`groups`).

What the journal holds is not drawn again: after a kill the same deals are made, and those of their groups that are in
the journal are done at once; only the rest is drawn, with the same seeds. Ledger, curriculum and journal belong to the
thread.
"""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from herd.core.streams import seed_of
from herd.engine.weights import weights_digest
from herd.errors import HerdError
from herd.rl.curriculum import Curriculum
from herd.rl.draw import Failure, InvalidGroup, in_thread
from herd.rl.journal import Admitted, Dropped, Finished, Journal, Picked, Published
from herd.rl.ledger import MAX_ROUNDS, Deal, Ledger, Waves, Window
from herd.rl.record import Group
from herd.rl.worker import Worker, WorkerLost

MOST_DROPPED, JUDGED_FROM = 0.2, 10
"""A run ends when more than this share of a cell's groups were dropped for failures, once it has had so many."""
MOST_INVALID = 3
"""Groups in a row with a reward or a log-probability that cannot be, before a run ends."""
GRACE_S = 5.0
"""How long the thread is waited for when the run ends."""
NO_SIGNAL = "all rewards are equal"


class Rollouts:
    """See the module."""

    def __init__(
        self,
        worker: Worker,
        curriculum: Curriculum,
        journal: Journal,
        *,
        seed: int,
        num_steps: int,
        groups: int,
        group_size: int,
        lag: int,
        window: int | None,
        max_groups: int = 0,
        prepare: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda tensors: tensors,
    ) -> None:
        """`window` of mode `inflight`; None: the lag is pinned. `prepare`: from the trainer's weights to those that
        the engine holds."""
        self.worker, self.curriculum, self.journal = worker, curriculum, journal
        self.seed, self.num_steps, self.num_groups, self.group_size = seed, num_steps, groups, group_size
        self.lag, self.window = lag, window
        self._room = asyncio.Semaphore(max_groups) if max_groups else contextlib.nullcontext()
        self._prepare = prepare
        self.version = 0
        self._loaded: int | None = None
        self._weights: dict[int, Mapping[str, Tensor]] = {}
        self._ledger: Ledger
        self._news = asyncio.Event()
        self._changed = threading.Condition()
        """Guards what the training waits for: the picks, the error, the end."""
        self._picked: dict[int, tuple[int, ...]] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._drawing: set[int] = set()
        """Groups that still need the engine."""
        self._lost: list[Admitted] = []
        """Groups whose worker ended before they were there."""
        self._results: dict[int, list[tuple[Admitted, Group | None]]] = {}
        """By wave, what the curriculum has not had; None: it failed."""
        self._outcomes: dict[tuple[str, str], Counter[str]] = {}
        self._num_applied = self._num_invalid = self._num_admitted = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)

    # What the training calls.

    def start(self, version: int, tensors: Mapping[str, Tensor], older: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Begin to draw, with the weights after `version` steps and those of the `lag` versions before."""
        self._weights |= older
        self._keep(version, tensors)
        self.version, window = version, self.window
        if window is None:
            self._ledger = Waves(num_steps=self.num_steps, lag=self.lag, groups=self.num_groups, version=version)
        else:
            self._load(version)
            self._ledger = Window(
                num_steps=self.num_steps, lag=self.lag, groups=self.num_groups, window=window, version=version
            )
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def publish(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Give the weights after `version` steps. Raises HerdError where they differ from what the journal has of this
        version, or from what the engine holds after loading them."""
        assert self._loop is not None, "rollouts are started before a step is trained"
        self._keep(version, tensors)
        if self.window is not None and not self._closed:
            self._load(version)
        self.version = version
        with contextlib.suppress(RuntimeError):  # a loop that failed is closed: `groups` raises why
            self._loop.call_soon_threadsafe(self._published, version)

    def groups(self, step: int) -> list[Group]:
        """The groups that a step is trained on, once they are known. Raises why drawing failed, if it did."""
        with self._changed:
            while step not in self._picked:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise HerdError("the rollouts were closed")
                self._changed.wait()
        return [self.journal.group(ordinal) for ordinal in self._picked[step]]

    def drawn_for(self, step: int) -> list[Group]:
        """The groups that were drawn to have those of a step: behind the newest of the steps before, up to its own."""
        with self._changed:
            known = [max(self._picked[one]) for one in range(step + 1)]
        before = max(known[:-1], default=-1)
        ordinals = range(before + 1, max(before, known[-1]) + 1)
        drawn = [one for one in ordinals if one in self.journal.finished] or list(self._picked[step])
        return [self.journal.group(one) for one in drawn]

    def close(self) -> None:
        """End the drawing and wake what waits for groups; does not wait for an environment."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._news.set)
        self.worker.close()  # first, as the thread may wait for it
        if self._loop is not None:
            self._thread.join(GRACE_S)
        self.journal.close()

    def _keep(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        digest = weights_digest(tensors)
        if version not in self.journal.published:
            self.journal.append(Published(version=version, digest=digest))
        elif (known := self.journal.published[version]) != digest:
            raise HerdError(
                f"the weights after {version} steps have the digest {digest[:12]}, the journal has {known[:12]}: what "
                "is trained is not what was trained before: check that code, settings and threads are the same"
            )
        self._weights[version] = tensors
        for old in [one for one in self._weights if one < version - self.lag]:
            del self._weights[old]

    def _load(self, version: int) -> None:
        """Have the engine draw by a version."""
        if version not in self._weights:
            raise HerdError(f"the weights of version {version} are not kept, and groups are to be drawn by them")
        published = self._weights[version]
        tensors = self._prepare(published)
        # Hashing takes as long as copying: what is loaded as it was published is not hashed again here.
        wanted = self.journal.published[version] if tensors is published else weights_digest(tensors)
        digest = self.worker.load(version, tensors)
        if digest != wanted:
            raise HerdError(
                f"the engine holds other weights ({digest[:12]}) than those of version {version} ({wanted[:12]}): "
                "nothing is drawn by them"
            )
        self._loaded = version

    # What its thread does.

    def _run(self) -> None:
        assert self._loop is not None
        try:
            self._loop.run_until_complete(self._drive())
        except BaseException as error:
            self._fail(error)
        finally:
            self._loop.close()

    async def _drive(self) -> None:
        try:
            if self.window is not None:
                self._replay()
            while not self._closed and self._error is None:
                self._pick()
                if self._ledger.is_starved:
                    raise HerdError(
                        f"{MAX_ROUNDS} times in a row all answers to a prompt had the same reward: give tasks that the "
                        f"model sometimes gets right; estimated pass rates: {self.curriculum.describe()}"
                    )
                if self._lost:
                    await self._draw_again()
                    continue
                if (deal := self._ledger.next_deal()) is None:
                    await self._news.wait()
                    self._news.clear()
                    continue
                admissions = self._deal(deal)
                if self.window is None and not all(self._is_known(one.ordinal) for one in admissions):
                    await self._use(deal.version)
                self._ledger.admit([one.ordinal for one in admissions], deal)
                for one in admissions:
                    self._admit(one)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _replay(self) -> None:
        """Tell the ledger of a window, which depends on timing, what the journal has; draw what was under way."""
        journal = self.journal
        deal = Deal(wave=0, round=0, count=len(journal.admitted), version=0)
        self._num_admitted = len(journal.admitted)
        self._ledger.admit(sorted(journal.admitted), deal)
        for admitted in journal.admitted.values():
            self.curriculum.mark((admitted.environment, admitted.cell, admitted.index))
            if self._is_known(admitted.ordinal):
                self._settle(admitted)
        for step, ordinals in sorted(journal.picked.items()):
            self._ledger.pick(step, ordinals)
            self.curriculum.end_step()
            self._give(step, ordinals)
        for admitted in journal.admitted.values():
            if not self._is_known(admitted.ordinal):
                self._start(admitted)

    def _deal(self, deal: Deal) -> list[Admitted]:
        """The groups of a deal, and their ordinals."""
        if self.window is None:
            settled = self._ledger.settled()
            for wave in sorted(one for one in self._results if one < settled):
                for admitted, group in sorted(self._results.pop(wave), key=lambda pair: pair[0].ordinal):
                    self._learn(admitted, group)
            for _ in range(self._num_applied, settled):
                self.curriculum.end_step()
            self._num_applied = max(self._num_applied, settled)
            count = self.curriculum.num_to_deal(deal.count, self.group_size, deal.wave, self.num_steps)
        else:
            count = deal.count
        seed = seed_of(self.seed, "deal", deal.round) if self.window is None else seed_of(self.seed, "deal")
        admissions = []
        for environment, cell, index in self.curriculum.deal(count, seed, deal.wave, self.num_steps):
            ordinal = self._num_admitted
            self._num_admitted += 1
            one = Admitted(
                ordinal=ordinal,
                wave=deal.wave,
                environment=environment,
                cell=cell,
                index=index,
                seed=seed_of(self.seed, "rollout", ordinal),
                version=deal.version,
            )
            if (known := self.journal.admitted.get(ordinal, one)) != one:
                raise HerdError(f"the journal has {known}, these settings give {one}: it is of another run")
            admissions.append(one)
        return admissions

    async def _use(self, version: int) -> None:
        """Have the engine draw by a version, once it has drawn what older ones have to."""
        if version == self._loaded:
            return
        while self._drawing and not self._closed and self._error is None:
            await self._news.wait()
            self._news.clear()
        await in_thread(lambda: self._load(version), None)

    async def _draw_again(self) -> None:
        """Draw what was lost, by the weights that it was drawn by: the engine may have newer ones since."""
        lost, self._lost = sorted(self._lost, key=lambda one: one.ordinal), []
        for admitted in lost:
            if self.window is None:
                await self._use(admitted.version)
            self._start(admitted)

    def _admit(self, admitted: Admitted) -> None:
        if admitted.ordinal not in self.journal.admitted:
            self.journal.append(admitted)
        if self._is_known(admitted.ordinal):
            self._settle(admitted)
        else:
            self._start(admitted)

    def _is_known(self, ordinal: int) -> bool:
        return ordinal in self.journal.finished or ordinal in self.journal.dropped

    def _start(self, admitted: Admitted) -> None:
        self._drawing.add(admitted.ordinal)
        task = asyncio.get_running_loop().create_task(self._draw(admitted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _draw(self, admitted: Admitted) -> None:
        ordinal = admitted.ordinal
        try:
            try:
                async with self._room:
                    group = await self.worker.draw(admitted, lambda: self._drawn(ordinal))
                self.journal.append(Finished(group=group))
                self._num_invalid = 0
            except Failure as failure:
                self.journal.append(Dropped(ordinal=ordinal, why=str(failure)))
                self._judge(admitted, failure)
            self._settle(admitted)
        except WorkerLost:
            self._lost.append(admitted)
        except Exception as error:
            self._fail(error)
        finally:
            self._drawn(ordinal)

    def _drawn(self, ordinal: int) -> None:
        self._drawing.discard(ordinal)
        self._news.set()

    def _judge(self, admitted: Admitted, error: Failure) -> None:
        """End the run where groups fail too often."""
        outcomes = self._outcomes.setdefault((admitted.environment, admitted.cell), Counter())
        outcomes["failed"] += 1
        failed = outcomes["failed"]
        self._num_invalid += isinstance(error, InvalidGroup)
        if self._num_invalid >= MOST_INVALID:
            raise HerdError(f"{MOST_INVALID} groups in a row are invalid, the last by its {error}")
        if failed + outcomes["done"] >= JUDGED_FROM and failed > MOST_DROPPED * (failed + outcomes["done"]):
            raise HerdError(
                f"{failed} of {failed + outcomes['done']} groups of {admitted.environment} {admitted.cell} failed, the "
                f"last as {error}: mend the environment, or leave this cell out"
            )

    def _settle(self, admitted: Admitted) -> None:
        """Tell the ledger what the journal has of a group."""
        ordinal = admitted.ordinal
        group = self.journal.group(ordinal) if ordinal in self.journal.finished else None
        if group is None:
            self._ledger.drop(ordinal)
        else:
            self._outcomes.setdefault((admitted.environment, admitted.cell), Counter())["done"] += 1
            if not group.has_signal and ordinal not in self.journal.dropped:
                self.journal.append(Dropped(ordinal=ordinal, why=NO_SIGNAL))
            self._ledger.finish(ordinal, has_signal=group.has_signal)
        if self.window is None:
            self._results.setdefault(admitted.wave, []).append((admitted, group))
        else:
            self._learn(admitted, group)

    def _learn(self, admitted: Admitted, group: Group | None) -> None:
        self.curriculum.count(has_signal=group is not None and group.has_signal)
        if group is None:
            return
        passes = float(np.clip(group.rewards, 0, 1).sum())
        self.curriculum.update(admitted.environment, admitted.cell, passes, len(group.rollouts))

    def _pick(self) -> None:
        """Decide what steps are trained on, as far as that is known."""
        while (found := self._ledger.next_pick()) is not None:
            step, ordinals = found
            known = self.journal.picked.get(step)
            if known is None:
                self.journal.append(Picked(step=step, ordinals=ordinals))
            elif known != ordinals:
                raise HerdError(f"the journal trains step {step} on {known}, these settings on {ordinals}")
            self._ledger.pick(step, ordinals)
            if self.window is not None:
                self.curriculum.end_step()
            self._give(step, ordinals)

    def _give(self, step: int, ordinals: tuple[int, ...]) -> None:
        with self._changed:
            self._picked[step] = ordinals
            self._changed.notify_all()

    def _published(self, version: int) -> None:
        self._ledger.publish(version)
        self._news.set()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if not self._closed:  # of what is closed, anything may fail
                self._error = self._error or error
            self._changed.notify_all()
        self._news.set()
