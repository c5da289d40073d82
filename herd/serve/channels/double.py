"""A stand-in for the Graph API on this machine: what it was sent, checked as Meta checks it, and signed deliveries.

It keeps the limits (form, token, length) and sends receipts as webhooks: statuses on WhatsApp, echoes on Messenger and
Instagram. Left out: everything that needs an account, such as templates and review.
"""

import asyncio
import hashlib
import hmac
import itertools
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from herd.serve.channels.config import TRAITS, Account, Channel
from herd.serve.channels.events import SIGNATURE_HEADER

RETRY_S = 0.5
"""Meta begins with more, and goes on for days."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """A text that the double was sent."""

    channel: Channel
    who: str
    text: str
    token: str
    message_id: str
    time: float


Fault = Callable[[Channel, str, str], Response | None]
"""From channel, recipient and text to an answer other than Meta's usual one."""


class GraphDouble:
    """`app` is the API; `texts`, `actions` what came; `deliver` sends a webhook until it is acknowledged."""

    def __init__(self, accounts: dict[Channel, Account], webhooks: str, *, receipts: bool = True) -> None:
        self.accounts, self.webhooks, self.receipts = accounts, webhooks, receipts
        self.texts: list[Received] = []
        self.actions: list[tuple[Channel, dict[str, Any]]] = []
        self.media: dict[str, tuple[str, bytes]] = {}
        self.fault: Fault | None = None
        self.on_text: Callable[[Received], None] | None = None
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: httpx2.AsyncClient | None = None
        base = urlsplit(next(iter(accounts.values())).graph).path
        self.app = Starlette(
            routes=[
                Route(f"{base}/{{sender}}/messages", self._messages, methods=["POST"]),
                Route(f"{base}/{{media}}", self._about, methods=["GET"]),
                Route("/media/{media}", self._media, methods=["GET"]),
            ]
        )

    def _account(self, request: Request, sender: str) -> Account | None:
        for account in self.accounts.values():
            mine = sender == account.id or (sender == "me" and account.channel == "instagram")
            if mine and request.headers.get("Authorization") == f"Bearer {account.access_token}":
                return account
        return None

    async def _messages(self, request: Request) -> Response:
        account = self._account(request, request.path_params["sender"])
        if account is None:
            return _error(190, "Invalid OAuth access token", 401)
        try:
            body = await request.json()
        except ClientDisconnect:  # it was killed as it sent: nothing came
            return _error(1, "An unknown error occurred", 500)
        channel, traits = account.channel, account.traits
        if body.get("status") == "read" or "sender_action" in body:
            self.actions.append((channel, body))
            return JSONResponse({"success": True})
        if channel == "whatsapp":
            to, recipient = body.get("to"), body.get("recipient")
            valid = (
                body.get("messaging_product") == "whatsapp"
                and body.get("type") == "text"
                and bool(to) != bool(recipient)
            )
            who, text, token = (
                to or recipient,
                body.get("text", {}).get("body"),
                body.get("biz_opaque_callback_data", ""),
            )
        else:
            who, message = body.get("recipient", {}).get("id"), body.get("message", {})
            text, token = message.get("text"), message.get("metadata", "")
            valid = channel == "instagram" or body.get("messaging_type") == "RESPONSE"
        if not (valid and isinstance(who, str) and isinstance(text, str) and text):
            return _error(100, "Invalid parameter", 400)
        if (len(text.encode()) if traits.unit == "bytes" else len(text)) > traits.cap:
            return _error(100, "Length of param message[text] must be less than or equal to the cap", 400)
        if self.fault and (response := self.fault(channel, who, text)) is not None:
            return response
        number = next(self._numbers)
        message_id = f"wamid.double{number}" if channel == "whatsapp" else f"mid.double{number}"
        received = Received(
            channel=channel, who=who, text=text, token=token, message_id=message_id, time=time.monotonic()
        )
        self.texts.append(received)
        if self.on_text:
            self.on_text(received)
        if self.receipts:
            self._later(self.deliver(channel, self.receipt(received)))
        if channel == "whatsapp":
            contact = {"input": who, "wa_id": who} if to else {"input": who, "user_id": who}
            return JSONResponse(
                {"messaging_product": "whatsapp", "contacts": [contact], "messages": [{"id": message_id}]}
            )
        return JSONResponse({"recipient_id": who, "message_id": message_id})

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _about(self, request: Request) -> Response:
        name = request.path_params["media"]
        if name not in self.media:
            return _error(100, "Unsupported get request", 400)
        kind, data = self.media[name]
        url = str(request.url_for("_media", media=name))
        return JSONResponse({"url": url, "mime_type": kind, "file_size": len(data), "id": name})

    async def _media(self, request: Request) -> Response:
        kind, data = self.media[request.path_params["media"]]
        return Response(data, media_type=kind)

    def receipt(self, text: Received) -> dict[str, Any]:
        """The webhook that tells of a text that was sent."""
        if text.channel == "whatsapp":
            status = {"id": text.message_id, "status": "sent", "timestamp": str(int(time.time()))}
            to = {"recipient_id": text.who} if text.who.isdigit() else {"recipient_user_id": text.who}
            return self.whatsapp({"statuses": [{**status, **to, "biz_opaque_callback_data": text.token}]})
        message = {"mid": text.message_id, "text": text.text, "is_echo": True}
        if text.token:
            message["metadata"] = text.token
        return self.event(text.channel, {"message": message}, who=text.who, echo=True)

    def whatsapp(self, *values: dict[str, Any]) -> dict[str, Any]:
        """A delivery with a change for each of `values`."""
        metadata = {"display_phone_number": "15550783881", "phone_number_id": self.accounts["whatsapp"].id}
        made = [{"messaging_product": "whatsapp", "metadata": metadata, **value} for value in values]
        changes = [{"field": "messages", "value": value} for value in made]
        return {"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": changes}]}

    def event(self, channel: Channel, content: dict[str, Any], *, who: str, echo: bool = False) -> dict[str, Any]:
        """A delivery with one event of Messenger or Instagram."""
        account = self.accounts[channel].id
        sides = (account, who) if echo else (who, account)
        event = {
            "sender": {"id": sides[0]},
            "recipient": {"id": sides[1]},
            "timestamp": int(1000 * time.time()),
            **content,
        }
        entry = {"id": account, "time": int(1000 * time.time()), "messaging": [event]}
        return {"object": "page" if channel == "messenger" else "instagram", "entry": [entry]}

    def message(
        self, channel: Channel, text: str, *, who: str, mid: str, image: str = "", at: float | None = None
    ) -> dict[str, Any]:
        """The delivery of a message, with a picture of `media` if there is an `image`."""
        if channel != "whatsapp":
            url = f"{urlsplit(self.accounts[channel].graph)._replace(path='').geturl()}/media/{image}"
            attachments = {"attachments": [{"type": "image", "payload": {"url": url}}]} if image else {}
            return self.event(
                channel, {"message": {"mid": mid, **({"text": text} if text else {}), **attachments}}, who=who
            )
        content = (
            {"image": {"id": image, "mime_type": "image/png", "caption": text}} if image else {"text": {"body": text}}
        )
        ids = {"from": who} if who.isdigit() else {"from_user_id": who}
        contact = {"wa_id": who} if who.isdigit() else {"user_id": who}
        stamp = str(int(time.time() if at is None else at))
        message = {**ids, "id": mid, "timestamp": stamp, "type": "image" if image else "text", **content}
        return self.whatsapp({"contacts": [{"profile": {"name": "Someone"}, **contact}], "messages": [message]})

    async def deliver(self, channel: Channel, payload: Any, *, tries: int = 100) -> None:
        """POST a signed webhook until it is acknowledged, as Meta does."""
        body, signature = signed(payload, self.accounts[channel].app_secret)
        headers = {SIGNATURE_HEADER: signature, "Content-Type": "application/json"}
        if self._client is None:  # to this machine alone: certificates need not be read
            self._client = httpx2.AsyncClient(timeout=10, trust_env=False, verify=False)
        for _ in range(tries):
            with suppress(httpx2.HTTPError):
                response = await self._client.post(f"{self.webhooks}/webhooks/{channel}", content=body, headers=headers)
                if response.status_code == 200:
                    return
            await asyncio.sleep(RETRY_S)


def signed(payload: Any, secret: str) -> tuple[bytes, str]:
    """The body as Meta writes it, unicode and slashes escaped, and its signature."""
    body = json.dumps(payload, separators=(",", ":")).replace("/", "\\/").encode()
    return body, "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _error(code: int, message: str, status: int) -> Response:
    return JSONResponse({"error": {"message": message, "type": "OAuthException", "code": code}}, status_code=status)


def local_accounts(
    graph: str, channels: tuple[Channel, ...] = ("whatsapp", "messenger", "instagram")
) -> dict[Channel, Account]:
    """Accounts with made-up ids and secrets, at a double."""
    return {
        name: Account(
            channel=name, id=f"10000000000000{number}", graph=graph, media_hosts=TRAITS[name].media_hosts, app_id="",
            app_secret=f"secret of {name}", access_token=f"token of {name}", verify_token="verify",
        )
        for number, name in enumerate(channels)
    }  # fmt: skip
