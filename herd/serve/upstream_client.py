"""The client of another OpenAI-compatible server, and what is read of its answers.

Every failure is named: 502 unreachable or no such stream, 504 silent, 429 and 400 as the other server says.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import httpx2
from pydantic import BaseModel, Field, ValidationError

from herd.errors import HerdError
from herd.serve.refusal import ApiError

VARIABLE = "HERD_UPSTREAM_KEY"
"""In the environment: the key that the other server asks for."""
CONNECT_S = 10.0
MAX_LINE_BYTES = 8 * 2**20
MAX_ANSWER_BYTES = 64 * 2**20


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _CallPart(BaseModel):
    index: int = Field(default=0, ge=0, lt=1024)
    function: _Function = _Function()


class _Delta(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_CallPart] | None = None


class Choice(BaseModel):
    delta: _Delta = _Delta()
    text: str | None = None
    """Of completions, in place of the delta."""
    finish_reason: str | None = None


class Usage(BaseModel):
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int | None = Field(default=None, ge=0)


class Chunk(BaseModel):
    """What is read of an event."""

    choices: list[Choice] = []
    usage: Usage | None = None


class UpstreamClient:
    """Asks the other server. Of one event loop."""

    def __init__(self, url: str, *, key: str | None, timeout_s: float) -> None:
        """`url` ends with the version, as `http://127.0.0.1:8001/v1`; `timeout_s`: the longest silence."""
        self.url, self._timeout_s = url, timeout_s
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx2.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
        # No proxies of the environment, no redirects: the operator named the host, and it alone is asked.
        self._client = httpx2.AsyncClient(
            base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=False, follow_redirects=False
        )

    async def model_names(self) -> list[str]:
        """Raises ApiError."""
        try:
            response = await self._client.get("/models", timeout=CONNECT_S)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None
        if response.status_code != 200:
            raise _refused(response.status_code, response.content, response.headers)
        try:
            names = [str(one["id"]) for one in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            names = []
        if not names:
            raise garbage("its list of models cannot be read")
        return names

    async def chunks(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """The events of an answer; the first, once the other server has begun it, is empty. Raises ApiError."""
        has_begun = False
        try:
            async with self._client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    raise _refused(response.status_code, await _beginning(response), response.headers)
                kind = response.headers.get("Content-Type", "")
                if not kind.startswith("text/event-stream"):
                    raise garbage(f"it sent {kind[:60] or 'something'} in place of events")
                has_begun = True
                yield Chunk()
                async with aclosing(_lines(response.aiter_bytes())) as lines:
                    async for line in lines:
                        if (chunk := _read(line)) is None:
                            return
                        yield chunk
        except httpx2.TimeoutException as error:
            if isinstance(error, httpx2.ConnectTimeout):
                raise self._unreachable(error) from None
            message = f"the server behind this one was silent for {self._timeout_s:g} s: try again later"
            raise ApiError(message, status=504, code="upstream_timeout") from None
        except httpx2.HTTPError as error:
            if has_begun:
                raise garbage(f"it broke off in the middle ({type(error).__name__})") from None
            raise self._unreachable(error) from None

    async def close(self) -> None:
        await self._client.aclose()

    def _unreachable(self, error: Exception) -> ApiError:
        message = f"the server behind this one cannot be reached ({type(error).__name__}): try again later"
        return ApiError(message, status=502, code="upstream_unreachable", headers={"Retry-After": "5"})


def check_url(url: str) -> str:
    """The address with its version, `/v1` where none is named. Raises HerdError."""
    parsed = httpx2.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query or parsed.fragment:
        raise HerdError(
            f"--upstream {url} must be an address such as http://127.0.0.1:8001/v1; its key is in {VARIABLE}"
        )
    return url.rstrip("/") if parsed.path.strip("/") else f"{url.rstrip('/')}/v1"


def _refused(status: int, content: bytes, headers: Mapping[str, str]) -> ApiError:
    """What the other server's refusal is to the client: its own mistake, too much, or not its affair."""
    try:
        error = json.loads(content)["error"]
        said = str(error["message"] if isinstance(error, dict) else error)[:500]
    except (ValueError, KeyError, TypeError):
        said = ""
    after = f": {said}" if said else ""
    if status == 429:
        retry = {"Retry-After": headers.get("Retry-After", "5")}
        return ApiError(
            f"the server behind this one is busy{after}", status=429, code="rate_limit_exceeded", headers=retry
        )
    if status in (400, 413, 422):
        return ApiError(f"the server behind this one refuses this{after}", code="upstream_refused")
    if status == 503:
        return ApiError(
            f"the server behind this one is not ready{after}", status=503, code="upstream_unavailable",
            headers={"Retry-After": headers.get("Retry-After", "5")},
        )  # fmt: skip
    # 401 and 403 are about the operator's key; what is said of it is nobody's business.
    after = "" if status in (401, 403) else after
    return ApiError(f"the server behind this one answers {status}{after}", status=502, code="upstream_failed")


def garbage(what: str) -> ApiError:
    return ApiError(f"the server behind this one failed: {what}", status=502, code="upstream_failed")


async def _beginning(response: httpx2.Response) -> bytes:
    """Of the body of an error."""
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > 2**16:
            break
    return bytes(data)


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Lines without their ends. Raises ApiError where one, or all together, are too long."""
    held, total = bytearray(), 0
    async for piece in pieces:
        total += len(piece)
        held += piece
        *whole, rest = held.split(b"\n")
        held = bytearray(rest)
        if max(map(len, (held, *whole))) > MAX_LINE_BYTES or total > MAX_ANSWER_BYTES:
            raise garbage("its answer is too long")
        for line in whole:
            yield bytes(line).rstrip(b"\r")
    if held:
        yield bytes(held)


def _read(line: bytes) -> Chunk | None:
    """The event of a line, empty where it has none; None at the end. Raises ApiError."""
    name, _, value = line.partition(b":")
    if name in (b"", b"event", b"id", b"retry"):  # and comments
        return Chunk()
    value = value.strip()
    if name != b"data":
        raise garbage("it sent what is no event")
    if value == b"[DONE]":
        return None
    try:
        fields = json.loads(value)
        if isinstance(fields, dict) and fields.get("error"):
            error = fields["error"]
            said = str(error.get("message") if isinstance(error, dict) else error)[:500]
            raise garbage(said)
        return Chunk.model_validate(fields)
    except (ValueError, RecursionError, ValidationError):
        raise garbage("it sent an event that cannot be read") from None
