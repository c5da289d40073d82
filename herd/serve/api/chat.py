"""OpenAI's chat completions: replies whole or as server-sent events, with calls and log-probabilities."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.answer import TokenLogprob
from herd.engine.reply import Reply, tool_call_objects
from herd.serve.prepare import PreparedRequest
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest
from herd.serve.service import Service
from herd.serve.streams import EventStream, event, write_events

CHAT = "/v1/chat/completions"
DONE = "data: [DONE]\n\n"
LEAST = -9999.0
"""OpenAI's number for what cannot be: JSON has no infinity."""


def routes(service: Service) -> APIRouter:
    """The route of chat completions."""
    router = APIRouter(tags=["generate"])

    @router.post(CHAT)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        model = await service.open(request, body.model)
        prepared = await service.prepare(request, model, body)
        streams = await service.streams(request, model, prepared, body.cache_salt)
        if body.stream:
            writer = ChatEvents(body, prepared, name=model.name, tokenizer=model.tokenizer)
            return EventStream(write_events(streams, writer))
        replies = await service.collect(request, streams)
        return JSONResponse(chat_body(body, prepared, replies, name=model.name, tokenizer=model.tokenizer))

    return router


def chat_body(
    request: ChatRequest, prepared: PreparedRequest, replies: Sequence[Reply], *, name: str, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """OpenAI's answer, of the replies that were generated."""
    reported = tokenizer if request.logprobs else None
    chosen = likeliest_replies(replies, request.num_choices)
    return {
        **_head(name),
        "object": "chat.completion",
        "choices": [choice(index, reply, reported) for index, reply in enumerate(chosen)],
        "usage": usage(prepared.num_prompt_tokens, sum(reply.num_tokens for reply in replies)),
    }


def _head(name: str) -> dict[str, Any]:
    """What the whole answer and every chunk of it begin with."""
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}


def likeliest_replies(replies: Sequence[Reply], count: int) -> Sequence[Reply]:
    """Those that the model finds likeliest, token for token; where all are wanted, as they are."""
    return sorted(replies, key=lambda one: -one.mean_logprob)[:count] if len(replies) > count else replies


def choice(index: int, reply: Reply, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A whole reply in OpenAI's form; with the tokenizer, its log-probabilities."""
    content = (reply.text or None) if reply.tool_calls or reply.explanation else reply.text
    return {
        "index": index,
        "message": {**reply.as_message(), "content": content, "refusal": reply.explanation or None},
        "logprobs": logprobs(reply.logprobs, tokenizer),
        "finish_reason": reply.finish_reason,
    }


class ChatEvents:
    """Of each reply the role, the text, the finish reason; then the usage, and `[DONE]`."""

    def __init__(
        self, request: ChatRequest, prepared: PreparedRequest, *, name: str, tokenizer: Tokenizer | None
    ) -> None:
        self._head = {**_head(name), "object": "chat.completion.chunk"}
        self._prepared = prepared
        self._tokenizer, self._with_usage = tokenizer if request.logprobs else None, request.with_usage
        self._num_tokens = 0

    def begin(self) -> Iterator[str]:
        for index in range(len(self._prepared.choices)):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def push(self, index: int, part: Reply) -> Iterator[str]:
        self._num_tokens += part.num_tokens
        if part.text or (part.logprobs and self._tokenizer):
            yield self._chunk(index, {"content": part.text}, part.logprobs)
        if part.tool_calls:
            calls = [{"index": i} | call for i, call in enumerate(tool_call_objects(part.tool_calls))]
            yield self._chunk(index, {"tool_calls": calls})
        if part.explanation:
            yield self._chunk(index, {"refusal": part.explanation})
        if part.finish_reason:
            yield self._chunk(index, {}, reason=part.finish_reason)

    def end(self) -> Iterator[str]:
        if self._with_usage:
            yield event(
                {**self._head, "choices": [], "usage": usage(self._prepared.num_prompt_tokens, self._num_tokens)}
            )
        yield DONE

    def error(self, error: ApiError) -> Iterator[str]:
        yield event(error.body)  # OpenAI's client raises it

    def _chunk(
        self, index: int, delta: Mapping[str, Any], tokens: Sequence[TokenLogprob] = (), *, reason: str | None = None
    ) -> str:
        extra = {"usage": None} if self._with_usage else {}
        found = logprobs(tokens, self._tokenizer) if tokens else None
        one = {"index": index, "delta": delta, "logprobs": found, "finish_reason": reason}
        return event({**self._head, "choices": [one], **extra})


def logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    """Log-probabilities in OpenAI's form; None without the tokenizer, as where they are not asked for."""
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
