"""Who may ask for what, and whose share of the engine and of its cache a request uses."""

import hashlib
import ipaddress
import math
from collections.abc import Sequence

from fastapi import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from herd.serve.keys import Keys
from herd.serve.meter import KEY, USAGE, Usage
from herd.serve.refusal import ApiError, error_response

PREFIX_BITS = 64
"""Of an IPv6 address: a caller has the rest to himself and could send each request from another address."""


class Access:
    """Lets a request pass where its key has the scope of its route, within the key's limits.

    What is not tagged as public needs a key, whether there is such a route or not: a route that nobody thought of is
    closed. Without keys everything is open, and who may reach the server is the operator's affair.
    """

    def __init__(self, app: ASGIApp, *, routes: Sequence[BaseRoute], keys: Keys | None) -> None:
        self.app, self.routes, self.keys = app, routes, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys is not None and (error := self._refusal(scope, self.keys)):
            await error_response(error, scope["path"])(scope, receive, send)
            return
        if scope["type"] == "websocket":  # there are none
            await send({"type": "websocket.close", "code": 1008})
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope, keys: Keys) -> ApiError | None:
        tags = tags_of(self.routes, scope)
        if tags is not None and "public" in tags:
            return None
        secret = _secret(scope)
        key = keys.find(secret) if secret else None
        if key is None:
            message = "this key is not known here" if secret else "a key is needed: Authorization: Bearer KEY"
            return ApiError(message, status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        scope[KEY] = key
        if tags is not None and not tags & key.scopes:
            what = " or ".join(sorted(tags)) or "that opens this route"
            return ApiError(f"the key {key.name!r} has no scope {what}", status=403, code="missing_scope")
        for bucket, what in ((key.requests, "requests"), (key.tokens, "tokens")):
            if bucket is not None and (wait_s := bucket.wait_s):
                return ApiError(
                    f"the key {key.name!r} has used up its {what} of this minute: try again later",
                    status=429,
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(math.ceil(wait_s))},
                )
        if key.requests is not None:
            key.requests.take(1)
        usage: Usage = scope[USAGE]
        usage.tokens = key.tokens
        return None


def tags_of(routes: Sequence[BaseRoute], scope: Scope) -> frozenset[str] | None:
    """Of the route that a request would take, empty where nobody tagged it; None where there is no such route."""
    for route in routes:
        if route.matches(scope)[0] is not Match.NONE:
            return frozenset(getattr(route, "tags", None) or ())
    return None


def _secret(scope: Scope) -> bytes:
    """The key that a request names, as OpenAI's clients send it or as Anthropic's do; empty without one."""
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:]).strip()
    return next((bytes(value).strip() for name, value in scope["headers"] if name == b"x-api-key"), b"")


def caller_of(request: Request) -> str:
    """Whose share of the engine a request uses: its key's; without keys that of the address that it comes from, as
    nothing else in it is proved."""
    if key := request.scope.get(KEY):
        return f"key {key.name}"
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
    named = request.headers.get("Authorization"), request.headers.get("x-api-key")
    parts = repr((caller_of(request), None if KEY in request.scope else named, cache_salt))
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
