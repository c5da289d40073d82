"""The webhooks, as ASGI in front of an application: what is not under /webhooks/ passes through.

They come before keys, hosts and limits of the application: Meta sends none of its headers, and signs instead.
A delivery is acknowledged when it is in the store, and not before: on any other answer Meta sends it again.
"""

import asyncio
import json
import logging
import sqlite3
import time

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from herd.serve.channels.config import Account, ChannelsConfig
from herd.serve.channels.delivery import Delivery
from herd.serve.channels.events import SIGNATURE_HEADER, challenge_of, ignored, is_signed
from herd.serve.channels.inbox import receive
from herd.serve.channels.store import Store

log = logging.getLogger("herd.channels")

PREFIX = "/webhooks/"
MAX_BODY_BYTES = 4 * 2**20
"""Meta's deliveries have at most 3 MB."""


class Webhooks:
    """`GET` verifies, `POST` receives, at /webhooks/whatsapp, /webhooks/messenger and /webhooks/instagram."""

    def __init__(self, app: ASGIApp, *, config: ChannelsConfig, store: Store, delivery: Delivery | None) -> None:
        """Without a `delivery` another process delivers."""
        self.app, self.config, self.store, self.delivery = app, config, store, delivery

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        account = next((one for name, one in self.config.accounts.items() if request.url.path == PREFIX + name), None)
        if account is None:
            return PlainTextResponse("no such channel", 404)
        if request.method == "GET":
            challenge = challenge_of(request.query_params, account.verify_token)
            return PlainTextResponse("forbidden", 403) if challenge is None else PlainTextResponse(challenge)
        if request.method != "POST":
            return PlainTextResponse("method not allowed", 405, headers={"Allow": "GET, POST"})
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                return PlainTextResponse("too large", 413)
        if not is_signed(bytes(body), request.headers.get(SIGNATURE_HEADER, ""), account.app_secret):
            return PlainTextResponse("forbidden", 403)
        try:
            # Another thread: the commit waits for the disk, and other requests must not.
            wakes = await asyncio.to_thread(self._receive, account, bytes(body))
        except sqlite3.Error as error:
            log.error("%s: a delivery could not be stored (%s): Meta will send it again", account.channel, error)
            return PlainTextResponse("not stored", 503)
        if wakes and self.delivery:
            self.delivery.wake()
        return PlainTextResponse("ok")

    def _receive(self, account: Account, body: bytes) -> bool:
        try:
            events = list(account.parse(json.loads(body)))
        except (ValueError, RecursionError):
            events = [ignored("not JSON")]
        hours = self.config.options.handover_hours
        return receive(self.store, account.channel, events, now=time.time(), handover_hours=hours)
