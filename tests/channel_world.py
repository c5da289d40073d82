"""The channels in one process: webhooks, delivery with an answer that repeats, and a double of the Graph API."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from starlette.applications import Starlette

from herd.errors import Stopped
from herd.serve.channels.config import Channel, ChannelsConfig, Options
from herd.serve.channels.delivery import Answer, Turn
from herd.serve.channels.double import GraphDouble, Received, local_accounts, signed
from herd.serve.channels.service import Channels, running_channels
from herd.serve.channels.simulate import local_server

PHONE = "16505551234"


class Parrot:
    """Repeats what was said, while the gate is open."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.gate = threading.Event()
        self.gate.set()
        self.blocks: tuple[str, ...] = ()
        self.fails = 0
        self.stops = False

    async def answer(self, turn: Turn) -> Answer:
        self.turns.append(turn)
        while not self.gate.is_set():
            await asyncio.sleep(0.01)
        if self.stops:
            raise Stopped("the engine is closed")
        if self.fails:
            self.fails -= 1
            raise RuntimeError("the parrot was made to fail")
        if turn.text in self.blocks:
            return Answer(text="I can't help with that.", blocked=True)
        return Answer(text=f"You said: {turn.text}")


@dataclass
class World:
    double: GraphDouble
    channels: Channels
    parrot: Parrot
    url: str
    client: httpx2.Client
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    def post(self, channel: Channel, payload: Any) -> int:
        body, signature = signed(payload, self.double.accounts[channel].app_secret)
        return self.client.post(
            f"{self.url}/webhooks/{channel}", content=body, headers={"X-Hub-Signature-256": signature}
        ).status_code

    def say(self, text: str, *, channel: Channel = "whatsapp", who: str = PHONE, mid: str = "", **options: Any) -> str:
        mid = mid or f"mid.{next(self.numbers)}"
        assert self.post(channel, self.double.message(channel, text, who=who, mid=mid, **options)) == 200
        return mid

    def texts(self, num: int) -> list[str]:
        """The first `num` texts that came, and no more after a moment."""
        eventually(lambda: len(self.double.texts) >= num)
        time.sleep(0.15)
        return [one.text for one in self.double.texts]

    @property
    def received(self) -> list[Received]:
        return self.double.texts

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.channels.store.db.execute(sql)]


def eventually(holds: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def on_disk(folder: Path) -> str:
    """All that a folder's files hold."""
    return "".join(path.read_bytes().decode("latin-1") for path in folder.iterdir())


@contextmanager
def world(folder: Path, *, receipts: bool = True, **options: Any) -> Iterator[World]:
    """All of it; `options` of channels.toml, with short waits if not given."""
    chosen = Options(**({"join_s": 0.05, "unknown_wait_s": 1.0} | options))
    parrot = Parrot()
    # Of each of the two the other's address is known only later.
    double = GraphDouble(local_accounts("http://127.0.0.1:1/v25.0"), "", receipts=receipts)
    with local_server(double.app) as graph:
        double.accounts = local_accounts(f"{graph}/v25.0")
        config = ChannelsConfig(options=chosen, accounts=double.accounts, store=folder / "channels.sqlite")
        with running_channels(config, parrot) as channels, local_server(channels.wrap(Starlette())) as url:
            double.webhooks = url
            with httpx2.Client(trust_env=False, verify=False) as client:
                yield World(double, channels, parrot, url, client)
