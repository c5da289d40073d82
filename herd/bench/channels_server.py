"""One process of the storm (herd.bench.channels): our channels, or a control, in front of an echo instead of a model.

`python -m herd.bench.channels_server KIND CHANNEL GRAPH PORT STORE`; it is killed at any moment. Imports no torch.
"""

import asyncio
import random
import socket
import sys
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from herd.serve.channels.config import Channel, ChannelsConfig, Options
from herd.serve.channels.delivery import Answer, Turn
from herd.serve.channels.double import local_accounts
from herd.serve.channels.service import running_channels

MANY = 10**6
OPTIONS = Options(
    join_s=0.05, max_join_s=1.0, max_answers=16, messages_per_hour=MANY, messages_per_day=MANY, unknown_wait_s=3.0
)


class Echo:
    """Repeats a message after a moment."""

    async def answer(self, turn: Turn) -> Answer:
        await asyncio.sleep(random.uniform(0, 0.05))
        return Answer(text=turn.text)


def naive(graph: str, channel: Channel) -> ASGIApp:
    """What a first version looks like: it answers the message of a delivery, then says 200."""
    account = local_accounts(graph)[channel]
    client = httpx2.AsyncClient(trust_env=False, verify=False)

    async def webhook(request: Request) -> PlainTextResponse:
        entry = (await request.json())["entry"][0]
        if channel == "whatsapp":
            message = entry["changes"][0]["value"]["messages"][0]
            who, text = message["from"], message["text"]["body"]
            body: dict[str, Any] = {"messaging_product": "whatsapp", "to": who, "type": "text", "text": {"body": text}}
        else:
            event = entry["messaging"][0]
            who, text = event["sender"]["id"], event["message"]["text"]
            body = {"recipient": {"id": who}, "messaging_type": "RESPONSE", "message": {"text": text}}
        await asyncio.sleep(random.uniform(0, 0.05))
        sender = "me" if channel == "instagram" else account.id
        headers = {"Authorization": f"Bearer {account.access_token}"}
        await client.post(f"{graph}/{sender}/messages", json=body, headers=headers)
        return PlainTextResponse("ok")

    return Starlette(routes=[Route(f"/webhooks/{channel}", webhook, methods=["POST"])])


def pywa(graph: str) -> ASGIApp:
    """An echo written with pywa, as its documentation shows."""
    from fastapi import FastAPI
    from pywa import WhatsApp, filters
    from pywa.types import Message

    account = local_accounts(graph)["whatsapp"]
    app = FastAPI()
    client = WhatsApp(
        phone_id=account.id,
        token=account.access_token,
        server=app,
        webhook_endpoint="/webhooks/whatsapp",
        verify_token=account.verify_token,
        app_secret=account.app_secret,
    )
    client.api._session.base_url = graph

    def echo(_: WhatsApp, message: Message) -> None:
        message.reply(message.text or "")

    client.on_message(filters.text)(echo)
    return app


def main(kind: str, channel: Channel, graph: str, port: str, store: str) -> None:
    listener = socket.create_server(("127.0.0.1", int(port)))

    def run(app: ASGIApp) -> None:
        uvicorn.Server(uvicorn.Config(app, log_level="critical")).run(sockets=[listener])

    if kind == "naive":
        run(naive(graph, channel))
    elif kind == "pywa":
        run(pywa(graph))
    else:
        config = ChannelsConfig(options=OPTIONS, accounts=local_accounts(graph), store=Path(store))
        with running_channels(config, Echo()) as channels:
            run(channels.wrap(Starlette()))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
