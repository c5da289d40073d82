"""Requests to the Graph API, and what an answer of it means for the message that was sent.

Nothing else is reached: addresses of pictures must be of the configured hosts, whose names must mean public addresses
and are resolved once, to the address that is connected to; redirects are not followed, and the access token goes to the
Graph API and WhatsApp's media host alone.
Codes: https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes
"""

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2

from herd.errors import HerdError
from herd.serve.channels import messenger, whatsapp
from herd.serve.channels.config import Account
from herd.serve.channels.events import Media, Who, table_of, text_of
from herd.serve.pictures import TIMEOUT, download, is_named, verification

log = logging.getLogger("herd.channels")

TYPING_TIMEOUT = httpx2.Timeout(5.0)
RATE_CODES = {4, 17, 32, 341, 613, 80007, 130429, 131048, 131056}
BRIEF_CODES = {1, 2, 1200, 131000, 131016, 131057, 133004}
"""Of a service that is down for a moment: Meta says to try again."""
ACCOUNT_CODES = {0, 3, 10, 102, 190, 368, 131005, 131031, 131042, 131045, 133010, *range(200, 300)}
"""Of a token, a permission or an account: no message gets through until somebody mends it."""
WINDOW_CODES = {(10, 2018278), (10, 2534022), (131047, 0)}
"""Outside of the 24 hours; of Messenger and Instagram with a subcode."""

Fault = Literal["rate", "brief", "account", "window", "message"]


@dataclass(frozen=True, kw_only=True)
class Sent:
    message_id: str


@dataclass(frozen=True, kw_only=True)
class NotSent:
    """Certainly not sent. `fault`: whose; of `rate`, `brief` and `account` it can be tried again."""

    fault: Fault
    error: str
    retry_after_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """It may have been sent."""

    error: str


Outcome = Sent | NotSent | Unknown


class Graph:
    """The Graph API for one account."""

    def __init__(self, account: Account) -> None:
        self.account = account
        # A connection for each request: one that the other side has closed meanwhile would look like a lost answer.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(
            timeout=TIMEOUT,
            limits=limits,
            follow_redirects=False,
            trust_env=False,
            verify=verification() if account.graph.startswith("https:") else False,
        )
        self._token = {"Authorization": f"Bearer {account.access_token}"}

    async def close(self) -> None:
        await self._client.aclose()

    @property
    def _messages(self) -> str:
        sender = "me" if self.account.channel == "instagram" else self.account.id
        return f"{self.account.graph}/{sender}/messages"

    async def send(self, who: Who, text: str, token: str) -> Outcome:
        """Send a text. Cancelled, it may have been sent."""
        if self.account.channel == "whatsapp":
            body = whatsapp.send_body(who, text, token)
        else:
            body = messenger.send_body(who, text, token, instagram=self.account.channel == "instagram")
        try:
            response = await self._client.post(self._messages, json=body, headers=self._token)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            return NotSent(fault="brief", error=f"cannot connect: {type(error).__name__}")
        except httpx2.HTTPError as error:
            return Unknown(error=f"no answer: {type(error).__name__}")
        return outcome_of(response.status_code, response.content, response.headers.get("Retry-After", ""))

    async def show_typing(self, who: Who, message_id: str, *, first: bool) -> None:
        """Mark what was written as read (`first`), and show that an answer is being written. Fails without a word."""
        bodies: list[dict[str, Any]] = []
        if self.account.channel == "whatsapp":
            bodies = [whatsapp.typing_body(message_id)]
        else:
            bodies = [messenger.action_body(who, name) for name in ("mark_seen", "typing_on")[not first :]]
        for body in bodies:
            try:
                await self._client.post(self._messages, json=body, headers=self._token, timeout=TYPING_TIMEOUT)
            except httpx2.HTTPError as error:
                log.info("%s: typing was not shown: %s", self.account.channel, type(error).__name__)

    async def fetch(self, media: Media) -> bytes:
        """The bytes of a picture. Raises HerdError where there is none, or it is too large or of another kind."""
        try:
            async with asyncio.timeout(60):
                if self.account.channel != "whatsapp":
                    return await self._download(media.ref, {})
                if not media.ref.isalnum():
                    raise HerdError("the picture's id is none")
                about = await self._client.get(f"{self.account.graph}/{media.ref}", headers=self._token)
                url = text_of(table_of(about.json()).get("url"))
                if about.status_code != 200 or not url:
                    raise HerdError(f"the picture is not there ({about.status_code})")
                return await self._download(url, self._token)  # within the five minutes that the address holds
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:
            if isinstance(error, HerdError):
                raise
            raise HerdError(f"the picture cannot be fetched ({type(error).__name__})") from None

    async def _download(self, url: str, headers: dict[str, str]) -> bytes:
        if not self._may_fetch(url):
            raise HerdError(f"the picture is at {urlsplit(url).hostname}, which is none of media_hosts")
        most, is_graph = self.account.traits.media_bytes, self._is_graph(url)
        return (await download(self._client, url, headers, most, is_trusted=is_graph))[1]

    def _may_fetch(self, url: str) -> bool:
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            return False
        return self._is_graph(url) or is_named(url, self.account.media_hosts)

    def _is_graph(self, url: str) -> bool:
        """Whether it is at the Graph API itself, whose address is the operator's own setting."""
        parts, graph = urlsplit(url), urlsplit(self.account.graph)
        return (parts.scheme, parts.hostname, parts.port) == (graph.scheme, graph.hostname, graph.port)


def outcome_of(status: int, body: bytes, retry_after: str = "") -> Outcome:
    """What an answer of the Graph API says about the message."""
    try:
        answer = table_of(json.loads(body))
    except ValueError:
        answer = {}
    wait = float(retry_after) if retry_after.isdigit() else 0.0
    if status == 200:
        messages = answer.get("messages")
        listed = table_of(messages[0]) if isinstance(messages, list) and messages else answer
        return Sent(message_id=text_of(listed.get("id")) or text_of(listed.get("message_id")))
    error = table_of(answer.get("error"))
    code, subcode = error.get("code"), error.get("error_subcode")
    if not isinstance(code, int):
        # A gateway's own page: the API behind it may have done its work.
        if status == 429:
            return NotSent(fault="rate", error="429", retry_after_s=wait)
        return (
            Unknown(error=f"status {status}") if status >= 500 else NotSent(fault="message", error=f"status {status}")
        )
    named = f"error {code}"
    if (code, subcode or 0) in WINDOW_CODES or code == 131047:
        return NotSent(fault="window", error=named)
    if code in RATE_CODES or status == 429:
        return NotSent(fault="rate", error=named, retry_after_s=wait)
    if code in BRIEF_CODES or error.get("is_transient") is True or status >= 500:
        return NotSent(fault="brief", error=named, retry_after_s=wait)
    return NotSent(fault="account" if code in ACCOUNT_CODES else "message", error=named)
