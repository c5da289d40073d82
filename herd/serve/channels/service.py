"""Store, delivery and webhooks together, beside an application."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette
from starlette.types import ASGIApp

from herd.serve.channels.config import ChannelsConfig
from herd.serve.channels.delivery import Answerer, Delivery
from herd.serve.channels.store import Store
from herd.serve.channels.webhooks import Webhooks


class Channels:
    """What runs: the store and the delivery loop."""

    def __init__(self, config: ChannelsConfig, store: Store, delivery: Delivery) -> None:
        self.config, self.store, self.delivery = config, store, delivery

    def wrap(self, app: ASGIApp) -> Webhooks:
        """`app` with the webhooks in front."""
        return Webhooks(app, config=self.config, store=self.store, delivery=self.delivery)

    def install(self, app: Starlette) -> None:
        """Put the webhooks in front of all that `app` has by now."""
        app.add_middleware(Webhooks, config=self.config, store=self.store, delivery=self.delivery)


@contextmanager
def running_channels(config: ChannelsConfig, answerer: Answerer) -> Iterator[Channels]:
    """Deliver while within, in a thread with an event loop of its own: guards and commits there hold up no request."""
    store = Store(config.store)
    delivery = Delivery(config, store, answerer)
    thread = threading.Thread(target=lambda: asyncio.run(delivery.run()), name="herd-channels", daemon=True)
    thread.start()
    try:
        yield Channels(config, store, delivery)
    finally:
        delivery.stop()
        thread.join()
        store.close()
