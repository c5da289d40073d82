"""The engine's pieces as OpenAI's client reads them: text, calls and log-probabilities, whole or as events."""

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from herd.core.errors import HerdError
from herd.data.calls import Call, CallFilter
from herd.data.tokenizer import Tokenizer
from herd.engine.answer import TokenLogprob
from herd.engine.engine import Engine
from herd.engine.sampler import SamplingParams
from herd.serve.refusal import ApiError
from herd.serve.session import answering

if TYPE_CHECKING:
    from herd.engine.load import Prompt

log = logging.getLogger("herd.serve")
LEAST = -9999.0
"""OpenAI's number for what cannot be: JSON has no infinity."""
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Made once: json.dumps makes one for each event."""
INTERNAL = ApiError("the server failed at this request; its log says why", status=500, code="internal_error")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one piece of the engine adds to an answer; or the whole of one."""

    text: str
    num_tokens: int
    finish_reason: str | None
    calls: tuple[Call, ...] = ()
    """With the last piece."""
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def mean_logprob(self) -> float:
        return sum(one.logprob for one in self.logprobs) / max(1, len(self.logprobs))


async def answer(
    engine: Engine,
    prompt: "Prompt",
    params: SamplingParams,
    names: Collection[str] = (),
    *,
    caller: str = "",
    salt: str = "",
) -> AsyncGenerator[Said, None]:
    """The engine's pieces, calls of the tools `names` read. The last has a reason."""
    words = CallFilter(names)
    async with answering(engine, prompt, params, caller=caller, salt=salt) as pieces:
        async for piece in pieces:
            text, calls, reason = words.push(piece.text), tuple[Call, ...](), piece.finish_reason
            if reason is not None:
                rest = words.finish(cut=reason == "length")
                if rest.reason:
                    log.info("what began like a call of a tool is text: %s", rest.reason)
                text, calls = text + rest.text, rest.calls
                reason = "tool_calls" if calls and not rest.cut else reason
            # OpenAI tells nothing of the end token.
            logprobs = piece.logprobs[: len(piece.token_ids)]
            num_tokens = len(piece.token_ids)
            yield Said(text=text, num_tokens=num_tokens, finish_reason=reason, calls=calls, logprobs=logprobs)


async def joined(pieces: AsyncGenerator[Said, None]) -> Said:
    """The whole answer."""
    text, num_tokens, last = "", 0, None
    logprobs: list[TokenLogprob] = []
    async with aclosing(pieces):
        async for last in pieces:
            text += last.text
            num_tokens += last.num_tokens
            logprobs += last.logprobs
    assert last is not None and last.finish_reason is not None, "an answer has a last piece"
    return Said(
        text=text,
        num_tokens=num_tokens,
        finish_reason=last.finish_reason,
        calls=last.calls,
        logprobs=tuple(logprobs),
    )


async def all_joined(answers: Sequence[AsyncGenerator[Said, None]]) -> list[Said]:
    """The whole answers, made at the same time; one that fails ends them all."""
    tasks = [asyncio.create_task(joined(pieces)) for pieces in answers]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def best(answers: Sequence[Said], count: int) -> list[Said]:
    """Those that the model finds likeliest, token for token."""
    return sorted(answers, key=lambda one: -one.mean_logprob)[:count]


def choice(index: int, said: Said, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A whole answer in OpenAI's shape; with the tokenizer, its log-probabilities."""
    message = {"role": "assistant", "content": (said.text.rstrip() or None) if said.calls else said.text}
    calls = {"tool_calls": tool_calls(said.calls)} if said.calls else {}
    return {
        "index": index,
        "message": message | {"refusal": None} | calls,
        "logprobs": _logprobs(said.logprobs, tokenizer),
        "finish_reason": said.finish_reason,
    }


async def events(
    answers: Sequence[AsyncGenerator[Said, None]],
    head: Mapping[str, Any],
    *,
    num_prompt: int,
    with_usage: bool,
    tokenizer: Tokenizer | None,
) -> AsyncGenerator[str, None]:
    """Server-sent events: of each answer the role, the text, the finish reason; then the usage, and `[DONE]`."""
    extra = {"usage": None} if with_usage else {}

    def chunk(index: int, delta: dict[str, Any], said: Said | None = None, reason: str | None = None) -> str:
        logprobs = _logprobs(said.logprobs, tokenizer) if said and said.logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _event({**head, "object": "chat.completion.chunk", "choices": [choice], **extra})

    num_tokens = 0
    try:
        for index in range(len(answers)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async with aclosing(merged(answers)) as pieces:
            async for index, said in pieces:
                num_tokens += said.num_tokens
                if said.text or (said.logprobs and tokenizer):
                    yield chunk(index, {"content": said.text}, said)
                if said.calls:
                    yield chunk(index, {"tool_calls": [{"index": i} | c for i, c in enumerate(tool_calls(said.calls))]})
                if said.finish_reason:
                    yield chunk(index, {}, reason=said.finish_reason)
    except Exception as error:
        # The status line has gone out as 200, so the error travels as an event; OpenAI's client raises it.
        if not isinstance(error, HerdError):
            log.error("an answer failed", exc_info=error)
        yield _event((ApiError(str(error)) if isinstance(error, HerdError) else INTERNAL).body)
        return
    if with_usage:
        tokens = usage(num_prompt, num_tokens)
        yield _event({**head, "object": "chat.completion.chunk", "choices": [], "usage": tokens})
    yield "data: [DONE]\n\n"


async def merged(answers: Sequence[AsyncGenerator[Said, None]]) -> AsyncGenerator[tuple[int, Said], None]:
    """The pieces of several answers as they come, with the number of the answer. Closed early, it closes them all."""
    if len(answers) == 1:  # no tasks and no queue between
        async with aclosing(answers[0]) as pieces:
            async for one in pieces:
                yield 0, one
        return
    news: asyncio.Queue[tuple[int, Said | Exception]] = asyncio.Queue()

    async def pump(index: int, pieces: AsyncGenerator[Said, None]) -> None:
        try:
            async with aclosing(pieces):
                async for said in pieces:
                    news.put_nowait((index, said))
        except Exception as error:  # it belongs to who reads
            news.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(index, pieces)) for index, pieces in enumerate(answers)]
    try:
        num_open = len(tasks)
        while num_open:
            index, said = await news.get()
            if isinstance(said, Exception):
                raise said
            num_open -= said.finish_reason is not None
            yield index, said
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {ENCODER.encode(value)}\n\n"


def _logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    if tokenizer is None:
        return None

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token)
        # A part of a character has no text of its own; its bytes tell.
        return {"token": data.decode(errors="replace"), "logprob": max(logprob, LEAST), "bytes": list(data)}

    content = [
        entry(one.token_id, one.logprob) | {"top_logprobs": [entry(*pair) for pair in one.top]} for one in tokens
    ]
    return {"content": content, "refusal": None}


def tool_calls(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls in OpenAI's shape, with new ids."""
    return [
        {
            "id": f"call_{uuid.uuid4().hex}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments_json},
        }
        for call in calls
    ]


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens of a request; a picture counts the tokens that stand for it."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
