"""Another OpenAI-compatible server (vLLM) behind this one's APIs, keys, limits, guards and channels.

A request is read and checked as for a model of our own, pictures and forms included, so that nothing reaches the other
server that would not be accepted here, least of all an address to fetch. It is then asked for a stream, whatever the
client wants, one stream for each choice. Of a stream only texts, calls, reasons and counts are read: what else there
is, such as reasoning, was not judged and is not passed on. No text passes before the guard's verdict on its chunk.

Left out: log-probabilities, token ids, `regex`, `grammar` and `best_of`, which are refused by name; embeddings and
tokens.
"""

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from herd.data.tokens.tool_calls import Call, read_arguments
from herd.engine.filters import Gate, StreamFilter, Verdict
from herd.engine.model import Prompt
from herd.engine.pipeline import ReplyRequest
from herd.engine.reply import Reply
from herd.engine.sampler import SamplingParams, choice_seeds
from herd.serve.forms import form_of
from herd.serve.messages import read_conversation
from herd.serve.models import unknown_model
from herd.serve.prepare import PreparedRequest
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest, GenerationRequest, TextRequest, check_fields, check_text_fields
from herd.serve.upstream_client import Choice, UpstreamClient, Usage, garbage

NAMES_S = 10.0
"""So long the other server's list of models is taken as known."""
OURS = frozenset({"stream", "stream_options", "n", "cache_salt", "echo"})
"""Fields of a request that are answered here."""
UNKNOWN_THERE = ("logprobs", "regex", "grammar", "best_of")
"""Fields that other servers lack, or whose answer cannot be read here."""
REASONS = ("stop", "length", "tool_calls", "content_filter")
DEFAULTS = SamplingParams(temperature=1.0)
"""What OpenAI's API samples by; the other server's own defaults are not known here."""


@dataclass(frozen=True, kw_only=True)
class UpstreamRequest(ReplyRequest):
    """One choice: what the other server is asked."""

    path: str
    body: Mapping[str, Any]
    number: int
    """Of its prompt."""


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
        num_counted, reason, usage, has_begun = 0, None, Usage(), False
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
            raise garbage("its answer ended without a reason")
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

    async def push(self, choice: Choice) -> str:
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


def _refuse_unknown(asked: GenerationRequest) -> None:
    for name in UNKNOWN_THERE:
        value = getattr(asked, name)
        if value is not None and value is not False:  # 0 log-probabilities are those of the tokens themselves
            message = f"{name}: not supported by the server behind this one: leave it out"
            raise ApiError(message, param=name, code="unsupported_parameter")
