"""Pictures at addresses, fetched from hosts that the operator has named and nowhere else.

A host's name must mean public addresses and is resolved once, to the address that is connected to, with the name's own
certificate; redirects are not followed. Videos are never fetched.
"""

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Collection, Mapping
from functools import cache
from urllib.parse import urlsplit

import httpx2

from herd.errors import HerdError
from herd.serve.message_schema import ImagePart, Message
from herd.serve.messages import MAX_MEDIA_BYTES
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest

TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
FETCH_S = 60.0
"""For all pictures of a request."""
MAX_REQUEST_BYTES = 64 * 2**20
"""Of all pictures of a request, as of its body."""
PICTURE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")


class Pictures:
    """Fetches what requests name by address. Of one event loop."""

    def __init__(self, hosts: Collection[str]) -> None:
        """`hosts`: names, or `.example.org` for all below one. Without any nothing is fetched."""
        self._hosts = hosts
        self._client: httpx2.AsyncClient | None = None

    async def fetched(self, chat: ChatRequest) -> ChatRequest:
        """The request with the pictures themselves in place of their addresses. Raises ApiError that names the part."""
        if not self._hosts or not any(_is_address(part) for one in chat.messages for part in _parts(one)):
            return chat
        left, messages = MAX_REQUEST_BYTES, list[Message]()
        deadline = asyncio.get_running_loop().time() + FETCH_S
        for i, message in enumerate(chat.messages):
            parts = _parts(message)
            for j, part in enumerate(parts):
                if not isinstance(part, ImagePart) or not _is_address(part):
                    continue
                here = f"messages[{i}].content[{j}]"
                try:
                    if message.role != "user":
                        raise HerdError(f"a message of role {message.role!r} cannot hold a picture")
                    async with asyncio.timeout_at(deadline):
                        kind, data = await self._fetch(part.image_url.url, min(MAX_MEDIA_BYTES, left))
                except (HerdError, httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:
                    reason = error if isinstance(error, HerdError) else f"it cannot be fetched ({type(error).__name__})"
                    raise ApiError(f"{here}: {reason}", param=f"{here}.image_url", code="invalid_image") from None
                left -= len(data)
                url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
                parts[j] = part.model_copy(update={"image_url": part.image_url.model_copy(update={"url": url})})
            messages.append(message.model_copy(update={"content": parts}) if parts else message)
        return chat.model_copy(update={"messages": messages})

    async def _fetch(self, url: str, max_bytes: int) -> tuple[str, bytes]:
        if not is_named(url, self._hosts):
            raise HerdError(
                f"{url[:60]!r} is not at a host that this server fetches pictures from over HTTPS: send the picture as "
                "a data: URL"
            )
        if self._client is None:
            self._client = open_client()
        return await download(self._client, url, {}, max_bytes)


def _parts(message: Message) -> list[object]:
    return list(message.content) if isinstance(message.content, list) else []


def _is_address(part: object) -> bool:
    return isinstance(part, ImagePart) and bool(re.match(r"\s*https?://", part.image_url.url, re.IGNORECASE))


def open_client() -> httpx2.AsyncClient:
    """No proxies of the environment, no redirects, no connection that is kept: each address is looked at anew."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.AsyncClient(
        timeout=TIMEOUT, limits=limits, follow_redirects=False, trust_env=False, verify=verification()
    )


@cache
def verification() -> ssl.SSLContext:
    """With the machine's certificates, which take a while to read."""
    return httpx2.create_ssl_context(trust_env=False)


def is_named(url: str, hosts: Collection[str]) -> bool:
    """Whether an address is one of HTTPS at a host of the list."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        return False
    host = (parts.hostname or "").lower()
    named = any(host == one or (one.startswith(".") and host.endswith(one)) for one in hosts)
    return named and parts.scheme == "https" and parts.port in (None, 443)


async def download(
    client: httpx2.AsyncClient, url: str, headers: Mapping[str, str], max_bytes: int, *, is_trusted: bool = False
) -> tuple[str, bytes]:
    """A picture's type and bytes. `is_trusted`: the host is the operator's own setting, and may be anywhere. Raises
    HerdError, and what httpx2 raises."""
    address, extensions = httpx2.URL(url), dict[str, str]()
    if not is_trusted:
        host = address.host
        headers = {**headers, "Host": host}
        extensions["sni_hostname"] = host  # whose certificate it must be
        address = address.copy_with(host=await public_address(host))
    async with client.stream("GET", address, headers=headers, extensions=extensions) as response:
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if response.status_code != 200 or kind not in PICTURE_TYPES:
            raise HerdError(f"no picture came back ({response.status_code}, {kind or 'no type'})")
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > max_bytes:
                raise HerdError(f"the picture has more than {max_bytes / 2**20:.3g} MiB")
    return kind, bytes(data)


async def public_address(host: str) -> str:
    """An address of `host`, all of whose addresses must be public: nothing of this network is reached by a name that
    somebody else has set. Raises HerdError."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise HerdError(f"the picture's host {host} cannot be resolved ({error})") from None
    addresses = [str(one[4][0]) for one in found]
    for one in addresses:
        address = ipaddress.ip_address(one.partition("%")[0])
        if not address.is_global or address.is_multicast:
            raise HerdError(f"the picture's host {host} is at {one}, which is no public address")
    return addresses[0]
