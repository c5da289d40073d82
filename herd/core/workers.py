"""A function over many items, with its results in the order of the items: in processes of this machine, or by Ray.

What a result is must depend on its item alone; then any number of workers gives the same. A process that is killed is
replaced, and the items that it had are done again. Only a few items are in work at a time, so memory does not grow
with their number. Workers end with the process that started them, however that ends.
"""

import hashlib
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from herd.errors import HerdError

TRIES = 3
"""How often an item may end its worker."""

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does the work."""

    number: int = 1
    """Processes; one is a thread of this process. With Ray, the CPUs of the cluster count instead."""
    ray: bool = False

    def map(
        self, function: Callable[[S, I], R], shared: S, items: Iterable[I], *, name: Callable[[I], str]
    ) -> Generator[tuple[I, R], None, None]:
        """Each item with `function(shared, item)`; all of them must be picklable for several workers.

        Raises HerdError where an item ends its worker again and again; `name` says which one it was.
        """
        pool: _Pool
        if self.ray:
            pool = _Ray(function, shared)
        elif self.number > 1:
            pool = _Processes(function, shared, self.number)
        else:
            pool = _Thread(function, shared)
        coming, waiting = iter(items), deque[tuple[I, Future[R]]]()
        lost = 0
        try:
            while True:
                while len(waiting) < 2 * pool.number and (item := next(coming, _END)) is not _END:
                    waiting.append((item, pool.submit(item)))
                if not waiting:
                    return
                item, future = waiting[0]
                try:
                    result = pool.result(future)
                except _Lost as error:
                    lost += 1
                    if lost >= TRIES or not error.may_try_again:
                        raise HerdError(
                            f"a process that works on {name(item)} was ended {TRIES} times, most likely out of memory: "
                            f"use fewer than {pool.number} workers; what is written is kept"
                        ) from None
                    pool.restart()
                    waiting = deque((item, f if _is_done(f) else pool.submit(item)) for item, f in waiting)
                    continue
                waiting.popleft()
                lost = 0
                yield item, result
        finally:
            pool.close()


ONE = Workers()

_END: Any = object()


class _Lost(Exception):
    """A worker ended before its result was there."""

    def __init__(self, *, may_try_again: bool) -> None:
        super().__init__()
        self.may_try_again = may_try_again


def _is_done(future: "Future[Any]") -> bool:
    return future.done() and not isinstance(future.exception(), BrokenProcessPool)


class _Pool(Protocol):
    number: int

    def submit(self, item: Any) -> "Future[Any]": ...

    def result(self, future: "Future[Any]") -> Any:
        """Raises _Lost, or what the function raised."""

    def restart(self) -> None: ...

    def close(self) -> None: ...


class _Thread:
    """Beside the thread that gives the items and takes the results; a daemon, so that it never delays an exit."""

    number = 1

    def __init__(self, function: Callable[[Any, Any], Any], shared: Any) -> None:
        self._wanted: SimpleQueue[tuple[Any, Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._work, args=(function, shared), daemon=True).start()

    def _work(self, function: Callable[[Any, Any], Any], shared: Any) -> None:
        while (wanted := self._wanted.get()) is not None:
            item, future = wanted
            try:
                future.set_result(function(shared, item))
            except BaseException as error:
                future.set_exception(error)

    def submit(self, item: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self._wanted.put((item, future))
        return future

    def result(self, future: "Future[Any]") -> Any:
        return future.result()

    def restart(self) -> None:
        raise AssertionError("a thread is not lost")

    def close(self) -> None:
        self._wanted.put(None)


class _Processes:
    """Spawned, not forked: threads of other libraries do not survive a fork."""

    def __init__(self, function: Callable[[Any, Any], Any], shared: Any, number: int) -> None:
        self.number = number
        self._data = pickle.dumps((function, shared))
        self.restart()

    def restart(self) -> None:
        context = get_context("spawn")
        # Its end of the pipe closes with this process or at `close`, which ends the workers.
        watched, self._alive = context.Pipe(duplex=False)
        threads = max(1, (os.cpu_count() or 1) // self.number)
        self._pool = ProcessPoolExecutor(
            self.number, mp_context=context, initializer=_start_process, initargs=(self._data, threads, watched)
        )

    def submit(self, item: Any) -> "Future[Any]":
        try:
            return self._pool.submit(_call_in_process, item)
        except BrokenProcessPool as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def result(self, future: "Future[Any]") -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            raise _Lost(may_try_again=True) from None

    def close(self) -> None:
        self._alive.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


_job: tuple[Callable[[Any, Any], Any], Any]
"""In a worker: the function and what all items share."""


def _start_process(data: bytes, threads: int, watched: Connection) -> None:
    global _job
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    _job = pickle.loads(data)


def _end_with(watched: Connection) -> None:
    try:
        watched.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _call_in_process(item: Any) -> Any:
    function, shared = _job
    return function(shared, item)


class _Ray:
    """A task for each item, on the cluster of `ray.init`: one that is running, of RAY_ADDRESS, or this machine.

    Every machine must see the same files under the same paths.
    """

    def __init__(self, function: Callable[[Any, Any], Any], shared: Any) -> None:
        try:
            import ray
        except ImportError:
            raise HerdError("Ray is not installed: pip install 'herd-lm[ray]', or leave --on ray out") from None
        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.number = max(1, int(resources.get("CPU", 1)))
        data = pickle.dumps((function, shared))
        self._key, self._data = hashlib.sha256(data).hexdigest(), ray.put(data)
        self._task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_call_on_ray)

    def submit(self, item: Any) -> "Future[Any]":
        future: Future[Any] = self._task.remote(self._key, self._data, item).future()
        return future

    def result(self, future: "Future[Any]") -> Any:
        try:
            return future.result()
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError:  # after the tries of max_retries
            raise _Lost(may_try_again=False) from None

    def restart(self) -> None:
        raise AssertionError("Ray replaces its workers")

    def close(self) -> None:
        del self._data


_job_key = ""


def _call_on_ray(key: str, data: bytes, item: Any) -> Any:
    global _job, _job_key
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    if key != _job_key:
        _job, _job_key = pickle.loads(data), key
    return _call_in_process(item)
