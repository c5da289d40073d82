"""Another OpenAI-compatible server (vLLM) behind this one's APIs, keys, limits, guards and channels.

A request is read and checked as for a model of our own, pictures and forms included, so that nothing reaches the other
server that would not be accepted here, least of all an address to fetch. It is then asked for a stream, whatever the
client wants, one stream for each choice. Of a stream only texts, calls, reasons and counts are read: what else there
is, such as reasoning, was not judged and is not passed on. No text passes before the guard's verdict on its chunk.

Left out: log-probabilities, token ids, `regex`, `grammar` and `best_of`, which are refused by name; embeddings and
tokens. Every failure of the other server is named: 502 unreachable or no such stream, 504 silent, 429 and 400 as it
says.
"""

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx2
from pydantic import BaseModel, Field, ValidationError

from herd.data.tokens.tool_calls import Call, read_arguments
from herd.engine.filters import Gate, StreamFilter, Verdict
from herd.engine.model import Prompt
from herd.engine.pipeline import ReplyRequest
from herd.engine.reply import Reply
from herd.engine.sampler import SamplingParams, choice_seeds
from herd.errors import HerdError
from herd.serve.forms import form_of
from herd.serve.messages import read_conversation
from herd.serve.models import unknown_model
from herd.serve.prepare import PreparedRequest
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest, GenerationRequest, TextRequest, check_fields, check_text_fields

VARIABLE = "HERD_UPSTREAM_KEY"
"""In the environment: the key that the other server asks for."""
CONNECT_S = 10.0
NAMES_S = 10.0
"""So long the other server's list of models is taken as known."""
MAX_LINE_BYTES = 8 * 2**20
MAX_ANSWER_BYTES = 64 * 2**20
OURS = frozenset({"stream", "stream_options", "n", "cache_salt", "echo"})
"""Fields of a request that are answered here."""
UNKNOWN_THERE = ("logprobs", "regex", "grammar", "best_of")
"""Fields that other servers lack, or whose answer cannot be read here."""
REASONS = ("stop", "length", "tool_calls", "content_filter")
DEFAULTS = SamplingParams(temperature=1.0)
"""What OpenAI's API samples by; the other server's own defaults are not known here."""


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


class _Choice(BaseModel):
    delta: _Delta = _Delta()
    text: str | None = None
    """Of completions, in place of the delta."""
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int | None = Field(default=None, ge=0)


class _Chunk(BaseModel):
    """What is read of an event."""

    choices: list[_Choice] = []
    usage: _Usage | None = None


@dataclass(frozen=True, kw_only=True)
class UpstreamRequest(ReplyRequest):
    """One choice: what the other server is asked."""

    path: str
    body: Mapping[str, Any]
    number: int
    """Of its prompt."""


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
            raise _garbage("its list of models cannot be read")
        return names

    async def chunks(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[_Chunk, None]:
        """The events of an answer; the first, once the other server has begun it, is empty. Raises ApiError."""
        has_begun = False
        try:
            async with self._client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    raise _refused(response.status_code, await _beginning(response), response.headers)
                kind = response.headers.get("Content-Type", "")
                if not kind.startswith("text/event-stream"):
                    raise _garbage(f"it sent {kind[:60] or 'something'} in place of events")
                has_begun = True
                yield _Chunk()
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
                raise _garbage(f"it broke off in the middle ({type(error).__name__})") from None
            raise self._unreachable(error) from None

    async def close(self) -> None:
        await self._client.aclose()

    def _unreachable(self, error: Exception) -> ApiError:
        message = f"the server behind this one cannot be reached ({type(error).__name__}): try again later"
        return ApiError(message, status=502, code="upstream_unreachable", headers={"Retry-After": "5"})


class Upstream:
    """The models of the other server, as `herd.serve.models` has them."""

    def __init__(self, client: UpstreamClient, *, gate: Gate | None = None) -> None:
        self.gate, self._client = gate, client
        self._names: Sequence[str] = ()
        self._until_s = 0.0

    @property
    def default(self) -> str:
        return self._names[0] if self._names else ""

    async def names(self) -> Sequence[str]:
        if time.monotonic() > self._until_s:
            self._names = await self._client.model_names()
            self._until_s = time.monotonic() + NAMES_S
        return self._names

    async def is_ready(self) -> bool:
        try:
            return bool(await self._client.model_names())
        except ApiError:
            return False

    def opened(self, name: str) -> "UpstreamModel | None":
        return self.lease(name)

    def lease(self, name: str) -> "UpstreamModel | None":
        if name in self._names:
            return UpstreamModel(name=name, client=self._client, gate=self.gate)
        return None

    def release(self, name: str) -> None:
        pass

    async def load(self, name: str) -> None:
        if name not in await self.names():
            raise unknown_model(name, self._names)

    def stats(self) -> Mapping[str, Mapping[str, int]]:
        return {}

    def close(self) -> None:
        """Running answers end when the server's event loop does."""


@dataclass(frozen=True, kw_only=True)
class UpstreamModel:
    """One model of the other server."""

    name: str
    client: UpstreamClient
    gate: Gate | None = None
    context: None = None
    tokenizer: None = field(default=None)

    async def prepare_chat(self, chat: ChatRequest) -> PreparedRequest:
        check_fields(chat)
        _refuse_unknown(chat)
        cancelled = threading.Event()
        try:
            conversation = await asyncio.to_thread(read_conversation, chat, cancelled.is_set)
        finally:
            cancelled.set()
        await asyncio.to_thread(form_of, chat)  # which refuses forms that nobody should compile
        return PreparedRequest(
            choices=self._choices(chat, "/chat/completions", {}, conversation.with_system, 0), num_prompt_tokens=0
        )

    async def prepare_texts(self, texts: TextRequest) -> PreparedRequest:
        check_text_fields(texts)
        _refuse_unknown(texts)
        choices: list[ReplyRequest] = []
        for number, prompt in enumerate(texts.prompts):
            if not isinstance(prompt, str):
                message = "prompt: arrays of token ids are not passed on to the server behind this one: send a text"
                raise ApiError(message, param="prompt", code="unsupported_parameter")
            given = {"prompt": prompt, "max_tokens": texts.max_tokens or 1}
            choices += self._choices(texts, "/completions", given, [{"role": "user", "content": prompt}], number)
        return PreparedRequest(choices=choices, num_prompt_tokens=0)

    def streams(self, prepared: PreparedRequest, *, caller: str, salt: str) -> list[AsyncGenerator[Reply, None]]:
        counts: dict[int, int] = {}
        return [self._stream(one, prepared, counts, caller, salt) for one in prepared.choices]

    def _choices(
        self,
        asked: GenerationRequest,
        path: str,
        given: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        number: int,
    ) -> list[ReplyRequest]:
        body = {**asked.model_dump(exclude_none=True, by_alias=True, exclude=set(OURS)), **given}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        params = asked.sampling(DEFAULTS)
        one = UpstreamRequest(
            prompt=Prompt(token_ids=[]), params=params, messages=messages, path=path, body=body, number=number
        )
        if asked.seed is None:
            return [one] * asked.num_choices
        seeds = choice_seeds(asked.seed, asked.num_choices)
        return [dataclasses.replace(one, body={**body, "seed": seed}) for seed in seeds]

    async def _stream(
        self, request: ReplyRequest, prepared: PreparedRequest, counts: dict[int, int], caller: str, salt: str
    ) -> AsyncGenerator[Reply, None]:
        assert isinstance(request, UpstreamRequest)
        body = {**request.body, "cache_salt": salt}
        async with aclosing(self.replies(request.path, body, request.messages, caller)) as parts:
            async for part, prompt_tokens in parts:
                if prompt_tokens:  # of each prompt once, however many choices it has
                    counts[request.number] = prompt_tokens
                    prepared.num_prompt_tokens = sum(counts.values())
                yield part

    async def replies(
        self, path: str, body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], caller: str
    ) -> AsyncGenerator[tuple[Reply, int], None]:
        """The parts of one reply, judged, each with the prompt's number of tokens where it is known."""
        if self.gate and (refused := await asyncio.to_thread(self.gate.check, messages, caller)):
            yield _ended(refused, 0, refused=True), 0
            return
        judged = _Judged(self.gate, messages, caller)
        num_counted, reason, usage, has_begun = 0, None, _Usage(), False
        shown, calls = "", tuple[Call, ...]()
        async with aclosing(self.client.chunks(path, body)) as chunks:
            async for chunk in chunks:
                usage = chunk.usage or usage
                if not chunk.choices or reason:
                    if not has_begun:  # its status is known
                        yield Reply(text="", finish_reason=None, num_tokens=0), 0
                        has_begun = True
                    continue
                choice = chunk.choices[0]
                shown = await judged.push(choice)
                num_tokens = int(bool(choice.text or choice.delta.content or choice.delta.tool_calls))
                num_counted += num_tokens  # a chunk is a token at least
                if judged.verdict:
                    break
                if choice.finish_reason:
                    reason = choice.finish_reason if choice.finish_reason in REASONS else "stop"
                yield Reply(text=shown, finish_reason=None, num_tokens=num_tokens), usage.prompt_tokens
        if not judged.verdict and reason is None:
            raise _garbage("its answer ended without a reason")
        if not judged.verdict:
            shown, calls = await judged.finish(reason or "")
        left = max(0, (usage.completion_tokens or 0) - num_counted)
        if judged.verdict:
            yield dataclasses.replace(_ended(judged.verdict, left), text=shown), usage.prompt_tokens
            return
        last = Reply(
            text=shown,
            finish_reason="tool_calls" if calls and reason != "length" else reason,
            num_tokens=left,
            tool_calls=calls,
            explanation=judged.refusal,
        )
        yield last, usage.prompt_tokens


class _Judged:
    """A reply on its way through the gate's filter."""

    def __init__(self, gate: Gate | None, messages: Sequence[Mapping[str, Any]], caller: str) -> None:
        self._gate, self._messages, self._caller = gate, messages, caller
        self._filter: StreamFilter | None = gate.filter(messages, caller) if gate else None
        self._verdict_of_calls: Verdict | None = None
        self._text = self.refusal = ""
        self._calls: dict[int, tuple[str, str]] = {}
        """Of each call its name and its arguments, as far as they have come."""

    @property
    def verdict(self) -> Verdict | None:
        return self._verdict_of_calls or (self._filter.verdict if self._filter else None)

    async def push(self, choice: _Choice) -> str:
        """What may be shown by now."""
        for part in choice.delta.tool_calls or ():
            name, arguments = self._calls.get(part.index, ("", ""))
            self._calls[part.index] = (name + (part.function.name or ""), arguments + (part.function.arguments or ""))
        self.refusal += choice.delta.refusal or ""
        text = choice.text if choice.text is not None else choice.delta.content or ""
        self._text += text
        if self._filter is None or not text:
            return text
        return await asyncio.to_thread(self._filter.push, text)

    async def finish(self, reason: str) -> tuple[str, tuple[Call, ...]]:
        """What was held back, and the calls. They are judged together with the text."""
        shown = await asyncio.to_thread(self._filter.finish) if self._filter else ""
        if self.verdict:
            return shown, ()
        rest = "".join(f"\n{name}({arguments})" for name, arguments in self._calls.values()) + self.refusal
        if self._gate and rest:
            whole = self._gate.filter(self._messages, self._caller)
            await asyncio.to_thread(lambda: (whole.push(self._text + rest), whole.finish()))
            self._verdict_of_calls = whole.verdict
            if whole.verdict:
                return shown, ()
        return shown, tuple(_call(name, arguments, cut=reason == "length") for name, arguments in self._calls.values())


def _call(name: str, arguments: str, *, cut: bool) -> Call:
    """A call as the other server gave it; of one that was cut off, or is broken, what can be read."""
    read = read_arguments(arguments or "{}")
    ends = [len(text) - len(text.rstrip('"}]')) for text in (json.dumps(read, ensure_ascii=False), arguments)]
    return Call(name=name, arguments=read, num_open=max(0, ends[0] - ends[1]) if cut else 0)


def _ended(verdict: Verdict, num_tokens: int, *, refused: bool = False) -> Reply:
    return Reply(
        text="",
        finish_reason=verdict.finish_reason,
        num_tokens=num_tokens,
        explanation=verdict.explanation,
        refused=refused,
    )


def check_url(url: str) -> str:
    """The address with its version, `/v1` where none is named. Raises HerdError."""
    parsed = httpx2.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query or parsed.fragment:
        raise HerdError(
            f"--upstream {url} must be an address such as http://127.0.0.1:8001/v1; its key is in {VARIABLE}"
        )
    return url.rstrip("/") if parsed.path.strip("/") else f"{url.rstrip('/')}/v1"


def _refuse_unknown(asked: GenerationRequest) -> None:
    for name in UNKNOWN_THERE:
        value = getattr(asked, name)
        if value is not None and value is not False:  # 0 log-probabilities are those of the tokens themselves
            message = f"{name}: not supported by the server behind this one: leave it out"
            raise ApiError(message, param=name, code="unsupported_parameter")


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


def _garbage(what: str) -> ApiError:
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
            raise _garbage("its answer is too long")
        for line in whole:
            yield bytes(line).rstrip(b"\r")
    if held:
        yield bytes(held)


def _read(line: bytes) -> _Chunk | None:
    """The event of a line, empty where it has none; None at the end. Raises ApiError."""
    name, _, value = line.partition(b":")
    if name in (b"", b"event", b"id", b"retry"):  # and comments
        return _Chunk()
    value = value.strip()
    if name != b"data":
        raise _garbage("it sent what is no event")
    if value == b"[DONE]":
        return None
    try:
        fields = json.loads(value)
        if isinstance(fields, dict) and fields.get("error"):
            error = fields["error"]
            said = str(error.get("message") if isinstance(error, dict) else error)[:500]
            raise _garbage(said)
        return _Chunk.model_validate(fields)
    except (ValueError, RecursionError, ValidationError):
        raise _garbage("it sent an event that cannot be read") from None
