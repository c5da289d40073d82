"""Replies in OpenAI's form: text, calls and log-probabilities, whole or as server-sent events."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.answer import TokenLogprob
from herd.engine.reply import Reply, tool_call_objects
from herd.errors import HerdError
from herd.serve.refusal import ApiError

log = logging.getLogger("herd.serve")
LEAST = -9999.0
"""OpenAI's number for what cannot be: JSON has no infinity."""
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Made once: json.dumps makes one for each event."""
INTERNAL = ApiError("the server failed at this request; the reason is in its log", status=500, code="internal_error")


def likeliest_replies(replies: Sequence[Reply], count: int) -> list[Reply]:
    """Those that the model finds likeliest, token for token."""
    return sorted(replies, key=lambda one: -one.mean_logprob)[:count]


def choice(index: int, reply: Reply, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A whole reply in OpenAI's form; with the tokenizer, its log-probabilities."""
    content = (reply.text or None) if reply.tool_calls else reply.text
    return {
        "index": index,
        "message": {**reply.as_message(), "content": content, "refusal": None},
        "logprobs": _logprobs(reply.logprobs, tokenizer),
        "finish_reason": reply.finish_reason,
    }


async def events(
    replies: Sequence[AsyncGenerator[Reply, None]],
    head: Mapping[str, Any],
    *,
    num_prompt: int,
    with_usage: bool,
    tokenizer: Tokenizer | None,
) -> AsyncGenerator[str, None]:
    """Server-sent events: of each reply the role, the text, the finish reason; then the usage, and `[DONE]`."""
    extra = {"usage": None} if with_usage else {}

    def chunk(index: int, delta: dict[str, Any], part: Reply | None = None, reason: str | None = None) -> str:
        logprobs = _logprobs(part.logprobs, tokenizer) if part and part.logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _event({**head, "object": "chat.completion.chunk", "choices": [choice], **extra})

    num_tokens = 0
    try:
        for index in range(len(replies)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async with aclosing(merge_streams(replies)) as parts:
            async for index, part in parts:
                num_tokens += part.num_tokens
                if part.text or (part.logprobs and tokenizer):
                    yield chunk(index, {"content": part.text}, part)
                if part.tool_calls:
                    calls = [{"index": i} | call for i, call in enumerate(tool_call_objects(part.tool_calls))]
                    yield chunk(index, {"tool_calls": calls})
                if part.finish_reason:
                    yield chunk(index, {}, reason=part.finish_reason)
    except Exception as error:
        # The status line has gone out as 200, so the error travels as an event; OpenAI's client raises it.
        if not isinstance(error, HerdError):
            log.error("a reply failed", exc_info=error)
        yield _event((ApiError(str(error)) if isinstance(error, HerdError) else INTERNAL).body)
        return
    if with_usage:
        tokens = usage(num_prompt, num_tokens)
        yield _event({**head, "object": "chat.completion.chunk", "choices": [], "usage": tokens})
    yield "data: [DONE]\n\n"


async def merge_streams(streams: Sequence[AsyncGenerator[Reply, None]]) -> AsyncGenerator[tuple[int, Reply], None]:
    """The parts of several replies as they come, with the number of the reply. Closed early, it closes them all."""
    if len(streams) == 1:  # no tasks and no queue between
        async with aclosing(streams[0]) as parts:
            async for part in parts:
                yield 0, part
        return
    queue: asyncio.Queue[tuple[int, Reply | Exception]] = asyncio.Queue()

    async def pump(index: int, parts: AsyncGenerator[Reply, None]) -> None:
        try:
            async with aclosing(parts):
                async for part in parts:
                    queue.put_nowait((index, part))
        except Exception as error:  # it belongs to who reads
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(index, parts)) for index, parts in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            index, news = await queue.get()
            if isinstance(news, Exception):
                raise news
            num_open -= news.finish_reason is not None
            yield index, news
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
        # A part of a character has no text of its own, only bytes.
        return {"token": data.decode(errors="replace"), "logprob": max(logprob, LEAST), "bytes": list(data)}

    content = [
        entry(one.token_id, one.logprob) | {"top_logprobs": [entry(*pair) for pair in one.top]} for one in tokens
    ]
    return {"content": content, "refusal": None}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens of a request; a picture counts as its tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
