"""Rollout workers in child processes of this machine: an interpreter each, so that engine and environments do not wait
for the trainer's Python, nor it for them.

They are spawned. Messages go through a pipe, weights through memory that both map. A child hears no signals: it ends
with its parent, whose end of the pipe then closes, or when it is killed.
"""

import asyncio
import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NoReturn

import msgspec
import torch
import torch.multiprocessing  # tensors in shared memory can be given to a child
from torch import Tensor

from herd.errors import HerdError
from herd.rl.draw import Drawer, EngineFailed
from herd.rl.journal import Admitted
from herd.rl.messages import Load, Place, Reply, draw_for, group_of, load_for, places_of, reply_of, write
from herd.rl.record import Group
from herd.rl.worker import Opening, WorkerLost


class Processes:
    """Where child processes are started, with room for weights that they share."""

    def __init__(self, opening: Opening, tensors: Mapping[str, Tensor]) -> None:
        """`tensors`: what is put is not larger."""
        self.opening = opening
        num_bytes = places_of(tensors)[1]
        try:
            self._room_B = torch.empty(num_bytes, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:
            raise HerdError(
                f"{num_bytes:,} bytes of shared memory for the weights cannot be had ({error}): enlarge /dev/shm, or "
                "set on=thread"
            ) from None

    def start(self) -> "Child":
        return Child(self.opening, self._room_B)

    def put(self, tensors: Mapping[str, Tensor]) -> tuple[Place, ...]:
        return write(tensors, self._room_B)


class Child:
    """One of them, as its parent has it."""

    def __init__(self, opening: Opening, room_B: Tensor) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_child, args=(opening, room_B, other), name="rollouts")
        self._process.start()
        other.close()
        self._lock = threading.Lock()
        """Held to send, and to change what is waited for."""
        self._waiting: dict[int | None, tuple[Future[Reply], Callable[[], None]]] = {}
        self._end: Exception | None = None
        """Why nothing can be asked any more."""
        atexit.register(self.kill)  # Python waits for children when it ends
        threading.Thread(target=self._listen, name="rollouts-replies", daemon=True).start()

    async def draw(self, admitted: Admitted, drawn: Callable[[], None]) -> Group:
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop has gone
                loop.call_soon_threadsafe(drawn)

        reply = await asyncio.wrap_future(self._ask(admitted, admitted.ordinal, tell))
        if reply.kind == "group":
            return group_of(reply.data)
        raise reply.raised()

    def load(self, version: int, weights: tuple[Place, ...]) -> Callable[[], str]:
        asked = self._ask(Load(version, weights), None)

        def wait() -> str:
            reply = asked.result()
            if reply.kind == "digest":
                return reply.text
            raise reply.raised()

        return wait

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        atexit.unregister(self.kill)

    def _ask(self, what: Admitted | Load, to: int | None, drawn: Callable[[], None] = lambda: None) -> "Future[Reply]":
        asked: Future[Reply] = Future()
        with self._lock:
            if self._end is not None:
                asked.set_exception(self._end)
                return asked
            self._waiting[to] = asked, drawn
            try:
                self._pipe.send_bytes(msgspec.msgpack.encode((type(what).__name__, what)))
            except OSError:
                self._waiting.pop(to)
                asked.set_exception(WorkerLost())
        return asked

    def _listen(self) -> None:
        end: Exception = WorkerLost()
        with suppress(EOFError, OSError):
            while True:
                reply = msgspec.msgpack.decode(self._pipe.recv_bytes(), type=Reply)
                if reply.kind == "drawn":
                    self._waiting[reply.to][1]()
                elif reply.to is None and reply.kind != "digest" and None not in self._waiting:
                    end = reply.raised()  # it could not be opened
                else:
                    with self._lock:
                        asked, _ = self._waiting.pop(reply.to)
                    settle(asked, reply)
        with self._lock:
            self._end = end
            waiting, self._waiting = self._waiting, {}
        for asked, _ in waiting.values():
            settle(asked, end)


def settle(asked: "Future[Reply]", reply: Reply | Exception) -> None:
    """Answer one that may have been given up."""
    with suppress(InvalidStateError):
        if isinstance(reply, Exception):
            asked.set_exception(reply)
        else:
            asked.set_result(reply)


def _child(opening: Opening, room_B: Tensor, pipe: Connection) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(opening.num_threads)
    try:
        drawer = opening.open(opening.environments())
    except Exception as error:
        pipe.send_bytes(msgspec.msgpack.encode(reply_of(error, None)))
        sys.stdout.flush()
        os._exit(1)
    asyncio.run(_serve(drawer, room_B, pipe))
    os._exit(0)


async def _serve(drawer: Drawer, room_B: Tensor, pipe: Connection) -> None:
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def say(reply: Reply) -> None:
        try:
            pipe.send_bytes(msgspec.msgpack.encode(reply))
        except OSError:
            os._exit(1)

    async def draw(admitted: Admitted) -> None:
        try:
            await draw_for(drawer, admitted, say)
        except EngineFailed as error:
            print(f"rl: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    async def load(order: Load) -> None:
        say(await asyncio.to_thread(load_for, drawer, order, room_B))

    def start(name: str, what: msgspec.Raw) -> None:
        if name == Load.__name__:
            task = loop.create_task(load(msgspec.msgpack.decode(what, type=Load)))
        else:
            task = loop.create_task(draw(msgspec.msgpack.decode(what, type=Admitted)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                name, what = msgspec.msgpack.decode(pipe.recv_bytes(), type=tuple[str, msgspec.Raw])
                loop.call_soon_threadsafe(start, name, what)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    await asyncio.Event().wait()
