"""Several ranks train on what the first one draws: it makes the whole batch of a step and gives it to all."""

from collections.abc import Callable

import torch.distributed as dist

from herd.core.batch import Batch
from herd.data.loading.batches import Batches, cancel
from herd.errors import HerdError
from herd.model.parallel import Parallel
from herd.train.checkpoint import on_first


class OnFirst:
    """Calls what only the first rank does; all wait for it, and its error is raised on all."""

    def __init__(self, parallel: Parallel) -> None:
        self._group = dist.new_group(backend="gloo") if parallel.is_distributed else None

    def __call__(self, work: Callable[[], None]) -> None:
        on_first(self._group, work)


class DealtBatches:
    """The batches of the first rank, whole, on every rank; `Parallel.share` then takes each rank's part.

    All ranks ask for the same steps in the same order. They are asked for in a thread of their own, so the ranks that
    meet here are a group of their own.
    """

    unit = "tokens"

    def __init__(
        self, whole: Batches[Batch] | None, num_steps: int, start: Callable[[], None], parallel: Parallel
    ) -> None:
        """`whole` on the first rank, None elsewhere. `start` is called on all ranks before the first batch: only then
        is it known where a run resumes."""
        self.whole, self.num_steps = whole, num_steps
        self._start: Callable[[], None] | None = start
        self._group = dist.new_group(backend="gloo") if parallel.is_distributed else None

    def batch(self, step: int) -> Batch:
        """The whole batch of step `step`. Raises HerdError on all ranks where the first one cannot make it."""
        if self._start is not None:
            start, self._start = self._start, None
            start()
        if self._group is None:
            assert self.whole is not None
            return self.whole.batch(step)
        dealt: list[Batch | str | None] = [None]
        own: BaseException | None = None
        if self.whole is not None:
            try:
                dealt = [self.whole.batch(step)]
            except BaseException as error:
                own, dealt = error, [f"{type(error).__name__}: {error}".splitlines()[0]]
        dist.broadcast_object_list(dealt, src=0, group=self._group)
        if own is not None:
            raise own
        if not isinstance(dealt[0], Batch):
            raise HerdError(f"the first rank has no batch for step {step}: {dealt[0]}")
        return dealt[0]

    def cancel(self) -> None:
        """End the drawing, where it is."""
        cancel(self.whole)
