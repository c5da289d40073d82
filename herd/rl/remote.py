"""Rollout workers as actors of a Ray cluster: that of `ray.init`, one that is running, of RAY_ADDRESS, or this machine.
Every machine must see the same files under the same paths. Weights go by the object store. No Ray types go further than
this file."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from herd.errors import HerdError
from herd.rl.draw import EngineFailed
from herd.rl.journal import Admitted
from herd.rl.messages import Load, Place, Reply, draw_for, group_of, load_for, places_of, reply_of, write
from herd.rl.record import Group
from herd.rl.worker import Opening, WorkerLost


class Actors:
    """Where actors are started, a CPU each."""

    def __init__(self, opening: Opening, number: int) -> None:
        try:
            import ray
        except ImportError:
            raise HerdError("Ray is not installed: pip install 'herd-lm[ray]', or leave --on ray out") from None
        self.ray, self.opening = ray, opening
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if (cpus := int(resources.get("CPU", 0))) < number:
            raise HerdError(f"workers={number} are more than the {cpus} CPUs of the Ray cluster: lower it")

    def start(self) -> "ActorMember":
        return ActorMember(self.ray, self.ray.remote(num_cpus=1, max_restarts=0)(Actor).remote(self.opening))

    def put(self, tensors: Mapping[str, Tensor]) -> tuple[tuple[Place, ...], Any]:
        data_B = torch.empty(places_of(tensors)[1], dtype=torch.uint8)
        return write(tensors, data_B), self.ray.put(data_B.numpy())


class ActorMember:
    """One actor, as the trainer has it."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._lost = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError)

    async def draw(self, admitted: Admitted, drawn: Callable[[], None]) -> Group:
        draw = self._actor.draw.options(num_returns="streaming")
        try:
            async for reference in draw.remote(msgspec.msgpack.encode(admitted)):
                reply = msgspec.msgpack.decode(await reference, type=Reply)
                if reply.kind == "group":
                    return group_of(reply.data)
                if reply.kind != "drawn":
                    raise reply.raised()
                drawn()
        except self._lost:
            raise WorkerLost from None
        raise WorkerLost

    def load(self, version: int, weights: tuple[tuple[Place, ...], Any]) -> Callable[[], str]:
        places, data = weights
        coming = self._actor.load.remote(msgspec.msgpack.encode(Load(version, places)), data).future()

        def wait() -> str:
            try:
                reply = msgspec.msgpack.decode(coming.result(), type=Reply)
            except self._lost:
                raise WorkerLost from None
            if reply.kind == "digest":
                return reply.text
            raise reply.raised()

        return wait

    def kill(self) -> None:
        self._ray.kill(self._actor)


class Actor:
    """What runs in the cluster."""

    def __init__(self, opening: Opening) -> None:
        os.chdir(opening.folder)
        torch.set_num_threads(opening.num_threads)
        self._refused: Reply | None = None
        try:
            self._drawer = opening.open(opening.environments())
        except Exception as error:  # else Ray would say that the actor has died
            self._refused = reply_of(error, None)

    async def draw(self, data: bytes) -> AsyncGenerator[bytes, None]:
        """What comes of a group, as it comes."""
        replies = asyncio.Queue[Reply]()
        task = asyncio.create_task(self._draw(msgspec.msgpack.decode(data, type=Admitted), replies.put_nowait))
        kind = "drawn"
        while kind == "drawn":
            reply = await replies.get()
            kind = reply.kind
            yield msgspec.msgpack.encode(reply)
        await task

    async def _draw(self, admitted: Admitted, say: Callable[[Reply], None]) -> None:
        if self._refused is not None:
            return say(self._refused)
        try:
            await draw_for(self._drawer, admitted, say)
        except EngineFailed as error:
            print(f"rl: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    async def load(self, order: bytes, data: np.ndarray) -> bytes:
        reply = self._refused
        if reply is None:
            # What the object store has cannot be written to, which torch does not know.
            data_B = torch.from_numpy(np.require(data, requirements="W"))
            load = msgspec.msgpack.decode(order, type=Load)
            reply = await asyncio.to_thread(load_for, self._drawer, load, data_B)
        return msgspec.msgpack.encode(reply)
