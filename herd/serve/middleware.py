"""Under which names the server may be asked, with how much, and how many at a time.

Each is refused with one line, before its body is read where that is possible.
"""

import asyncio
import ipaddress
import math
import re
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herd.serve.refusal import ApiError, error_response

HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\s\[\]:/?#@\\]+)(:[0-9]{0,5})?", re.IGNORECASE)
"""The Host header: a name or an address, IPv6 in brackets, and perhaps a port."""
LONGEST_RETRY_S = 60
BODY_S = 120.0
"""In which a body has to arrive: 64 MiB at half a megabyte a second."""
DRAIN_RETRY_S = 5
"""A client that asks again by then finds whatever took this server's place."""


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


class Queue:
    """The requests that the engine computes for, and whether more are let in. Of one event loop."""

    def __init__(self, *, most: int, num_seqs: int) -> None:
        """At most `most` run or wait, `num_seqs` of them run."""
        self.most, self._num_seqs = most, num_seqs
        self.num_open = 0
        self.is_draining = False
        """Whether the server is about to end: what runs may end, nothing more is let in."""
        self._mean_s = 0.0
        """Of the last requests, each new one with a tenth of the weight."""

    @property
    def estimate_s(self) -> int:
        """When what waits now will run, as long as requests take as long as the last ones."""
        waiting = max(0, self.num_open - self._num_seqs)
        return min(max(1, math.ceil(self._mean_s * waiting / self._num_seqs)), LONGEST_RETRY_S)

    def refusal(self) -> ApiError | None:
        """Why one more is not let in."""
        if self.is_draining:
            message = "this server is about to end: ask again, which reaches another one or the next"
            return ApiError(message, status=503, code="shutting_down", headers={"Retry-After": str(DRAIN_RETRY_S)})
        if self.num_open >= self.most:
            message = f"{self.num_open} requests are running or waiting: try again in {self.estimate_s} s"
            headers = {"Retry-After": str(self.estimate_s)}
            return ApiError(message, status=429, code="rate_limit_exceeded", headers=headers)
        return None

    def count(self, seconds: float) -> None:
        """That a request took so long."""
        self._mean_s += (seconds - self._mean_s) * (0.1 if self._mean_s else 1)


class QueueLimit:
    """Lets in what the queue has room for, before its body is read."""

    def __init__(self, app: ASGIApp, *, paths: frozenset[str], queue: Queue) -> None:
        self.app, self.paths, self.queue = app, paths, queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
            return
        if error := self.queue.refusal():
            await error_response(error, scope["path"])(scope, receive, send)
            return
        begin = time.monotonic()
        self.queue.num_open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.queue.num_open -= 1
            self.queue.count(time.monotonic() - begin)


class BodyLimit:
    """Refuses a request whose body grows past `max_bytes` while it is read, or is not there after `BODY_S`: it holds a
    place in the queue for so long."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes, is_whole, deadline_s = 0, False, time.monotonic() + BODY_S

        async def receive_counted() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:  # what comes now is that the client goes away
                return await receive()
            try:
                # Not wait_for, which drops a cancellation that comes with the message (Python 3.11): whoever waits for
                # the client to go away would then wait for that.
                async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request did not arrive within {BODY_S:g} s: send it faster") from None
            is_whole = not message.get("more_body", False)
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
