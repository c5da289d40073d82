"""What a training loop reads: batches by their step, the next one being made while the current one is used.

A batch may be read from a data folder or made while the training goes on: `batch` may wait as long as it has to. The
loop can be asked to leave meanwhile, and leaving never hangs: batches that wait are cancelled, and a thread that
is not done soon after is left behind. Of several ranks, one that was not asked itself leaves once its batch is there.
"""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Protocol, TypeVar, runtime_checkable

POLL_S = 0.1
"""How often a loop that waits for a batch looks whether it was asked to leave."""
GRACE_S = 5.0
"""How long the batch in the making is waited for when the loop leaves."""


class Sized(Protocol):
    """A batch of any kind."""

    @property
    def size(self) -> int: ...


B = TypeVar("B", bound=Sized)
B_co = TypeVar("B_co", bound=Sized, covariant=True)


@runtime_checkable
class Batches(Protocol[B_co]):
    """The batches of a training; batch s is a function of s, whatever was asked for before."""

    num_steps: int
    unit: str
    """What the size of a batch counts."""

    def batch(self, step: int) -> B_co:
        """Called from a thread that works ahead, and for steps that are over from the loop's own at the same time. May
        wait; if it can wait for long, see Cancellable."""
        ...


@runtime_checkable
class Cancellable(Protocol):
    """Batches that may wait for long."""

    def cancel(self) -> None:
        """Called from another thread when the loop leaves: `batch` returns or raises soon, now and from now on."""
        ...


def cancel(batches: object) -> None:
    """Cancel batches that can be."""
    if isinstance(batches, Cancellable):
        batches.cancel()


def prefetch(
    batches: Batches[B], start: int, leave: Callable[[], bool]
) -> Generator[tuple[int, Future[B]], None, None]:
    """Steps from `start` on and their batches. A batch is there when its step is yielded, or failed; unless `leave`
    has become true meanwhile.

    Close it when leaving it early (`contextlib.closing`).
    """
    # One daemon thread for all steps: an executor's is joined when Python ends, even one that waits for ever, and
    # a thread a step would start OpenMP's threads anew each time.
    wanted: SimpleQueue[tuple[int, Future[B]] | None] = SimpleQueue()

    def make() -> None:
        while (item := wanted.get()) is not None:
            step, future = item
            try:
                future.set_result(batches.batch(step))
            except BaseException as error:
                future.set_exception(error)

    def request(step: int) -> Future[B]:
        future: Future[B] = Future()
        wanted.put((step, future))
        return future

    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    try:
        coming = request(start) if start < batches.num_steps else None
        for step in range(start, batches.num_steps):
            assert coming is not None
            current = coming
            while not leave() and not wait([current], timeout=POLL_S).done:
                pass
            if step + 1 < batches.num_steps and current.done():
                coming = request(step + 1)
            yield step, current
    finally:
        cancel(batches)
        wanted.put(None)
        thread.join(GRACE_S)
