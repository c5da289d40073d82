"""What a request costs, counted while it is answered: for the metrics, for its key's limit, and for the audit log."""

import time
from dataclasses import dataclass

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herd.serve.audit import AuditLog
from herd.serve.keys import Bucket, Key
from herd.serve.metrics import Metrics

USAGE, KEY = "herd.usage", "herd.key"
"""In the scope of a request: its Usage, and its Key where there are keys."""


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
    tokens: Bucket | None = None
    """The key's, from which they are taken."""

    def add_prompt(self, num_tokens: int) -> None:
        self.prompt_tokens += num_tokens
        if self.tokens is not None:
            self.tokens.take(num_tokens)

    def add_reply(self, num_tokens: int, *, blocked: bool) -> None:
        """A part of a reply."""
        if num_tokens and self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.begin_s
        self.completion_tokens += num_tokens
        self.blocked += blocked
        if self.tokens is not None:
            self.tokens.take(num_tokens)


def usage_of(request: Request) -> Usage:
    """What the request has cost so far."""
    usage: Usage = request.scope[USAGE]
    return usage


class Meter:
    """Counts every request and what it cost, and writes it down where there is an audit log."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, audit: AuditLog | None = None) -> None:
        self.app, self.metrics, self.audit = app, metrics, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        usage = scope[USAGE] = Usage(time.monotonic())
        status = 499  # where no answer begins, the client has gone
        asked, said = bytearray(), bytearray()
        with_contents = self.audit is not None and self.audit.contents

        async def receive_noting() -> Message:
            message = await receive()
            if with_contents:
                asked.extend(message.get("body", b""))
            return message

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif with_contents:
                said.extend(message.get("body", b""))
            await send(message)

        self.metrics.open.inc()
        try:
            await self.app(scope, receive_noting, send_noting)
        finally:
            self.metrics.open.dec()
            self._count(scope, usage, status)
            if self.audit:
                contents = (asked.decode(errors="replace"), said.decode(errors="replace"))
                self._write(self.audit, scope, usage, status, dict(zip(("request", "response"), contents, strict=True)))

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

    def _write(self, audit: AuditLog, scope: Scope, usage: Usage, status: int, contents: dict[str, str]) -> None:
        key: Key | None = scope.get(KEY)
        audit.write(
            key=key and key.name,
            address=scope["client"][0] if scope.get("client") else None,
            method=scope["method"],
            path=scope["path"],
            status=status,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            blocked=usage.blocked,
            seconds=round(time.monotonic() - usage.begin_s, 3),
            **(contents if audit.contents else {}),
        )
