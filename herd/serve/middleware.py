"""Who may come in: under which names, with how much, and how many at a time.

Each is refused with one line, before its body is read where that is possible.
"""

import hashlib
import ipaddress
import re
import time
from dataclasses import dataclass

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herd.serve.metrics import Metrics
from herd.serve.refusal import ApiError, error_response

HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\s\[\]:/?#@\\]+)(:[0-9]{0,5})?", re.IGNORECASE)
"""The Host header: a name or an address, IPv6 in brackets, and perhaps a port."""
USAGE = "herd.usage"
"""In the scope of a request: its Usage."""
PREFIX_BITS = 64
"""Of an IPv6 address: a caller has the rest to himself and could send each request from another address."""


class HostCheck:
    """Refuses a Host header that is malformed, and with a `loopback_host` every name but loopback's and this one.

    Otherwise a web page could reach a server on this machine by a name of its own that it points to 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, *, loopback_host: str | None) -> None:
        self.app, self.loopback_host = app, loopback_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), None)
            if not self._is_allowed(host):
                message = f"the Host header {host!r} names no address of this server"
                await error_response(ApiError(message, code="invalid_host"), scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_allowed(self, host: str | None) -> bool:
        if not host:  # HTTP/1.0 has none
            return self.loopback_host is None
        match = HOST.fullmatch(host)
        if match is None or self.loopback_host is None:
            return match is not None
        name = match["name"].strip("[]").lower()
        return name in {"localhost", self.loopback_host.lower()} or is_loopback(name)


class QueueLimit:
    """Refuses what the engine has to compute with 429 while `most` of it are running or waiting."""

    def __init__(self, app: ASGIApp, *, paths: frozenset[str], most: int) -> None:
        self.app, self.paths, self.most = app, paths, most
        self._num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
            return
        if self._num_open >= self.most:
            message = f"{self._num_open} requests are running or waiting: try again later"
            error = ApiError(message, status=429, code="rate_limit_exceeded", headers={"Retry-After": "1"})
            await error_response(error, scope["path"])(scope, receive, send)
            return
        self._num_open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._num_open -= 1


@dataclass
class Usage:
    """What one request cost; it grows while the request is answered."""

    begin_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    """From the beginning."""
    blocked: int = 0
    """Replies that a guard or a filter ended."""

    def add_prompt(self, num_tokens: int) -> None:
        self.prompt_tokens += num_tokens

    def add_reply(self, num_tokens: int, *, blocked: bool) -> None:
        """A part of a reply."""
        if num_tokens and self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.begin_s
        self.completion_tokens += num_tokens
        self.blocked += blocked


def usage_of(request: Request) -> Usage:
    """What the request has cost so far."""
    usage: Usage = request.scope[USAGE]
    return usage


class Meter:
    """Counts every request and what it cost."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        usage = scope[USAGE] = Usage(time.monotonic())
        status = 499  # where no answer begins, the client has gone

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.open.inc()
        try:
            await self.app(scope, receive, send_noting_status)
        finally:
            self.metrics.open.dec()
            self._count(scope, usage, status)

    def _count(self, scope: Scope, usage: Usage, status: int) -> None:
        metrics = self.metrics
        path = getattr(scope.get("route"), "path", "other")  # not the path asked for: of those there are endless ones
        metrics.requests.labels(path=path, status=str(status)).inc()
        metrics.seconds.labels(path=path).observe(time.monotonic() - usage.begin_s)
        if usage.first_token_s is not None:
            metrics.first_token_seconds.observe(usage.first_token_s)
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.completion_tokens.inc(usage.completion_tokens)
        metrics.blocked.inc(usage.blocked)


class BodyLimit:
    """Refuses a request whose body grows past `max_bytes` while it is read."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0

        async def receive_counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                raise HTTPException(413, f"the request has more than {self.max_bytes // 2**20} MiB: send less")
            return message

        await self.app(scope, receive_counted, send)


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.split("%")[0]).is_loopback
    except ValueError:
        return False


def caller_of(request: Request) -> str:
    """Whose share of the engine a request uses: the address that it comes from, as nothing else in it is proved."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:  # a Unix socket, or what a proxy wrote
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.ip_network((address, PREFIX_BITS), strict=False))


def salt_of(request: Request, cache_salt: str | None) -> str:
    """Only requests of one salt share cached prefixes, so that the time to the first token reveals nothing to
    others."""
    parts = repr((caller_of(request), request.headers.get("Authorization"), cache_salt))
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
