"""Anthropic's Messages API: whole or streamed, with tools and pictures, and the count of a prompt's tokens."""

import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from herd.data.tokens.tool_calls import Call, read_arguments
from herd.engine.reply import Reply
from herd.serve.api.anthropic_schema import CountRequest, MessagesRequest, chat_of
from herd.serve.prepare import PreparedRequest
from herd.serve.refusal import MESSAGES, ApiError
from herd.serve.service import Service
from herd.serve.streams import EventStream, event, write_events

REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def routes(service: Service) -> APIRouter:
    """The routes of messages."""
    router = APIRouter(tags=["generate"])

    @router.post(MESSAGES)
    async def messages(body: MessagesRequest, request: Request) -> Response:
        model = await service.open(request, body.model)
        prepared = await service.prepare(request, model, chat_of(body))
        streams = await service.streams(request, model, prepared, body.cache_salt)
        writer = MessageEvents(prepared, name=model.name)
        if body.stream:
            return EventStream(write_events(streams, writer))
        [reply] = await service.collect(request, streams)
        return JSONResponse(writer.body(reply))

    @router.post(f"{MESSAGES}/count_tokens")
    async def count_tokens(body: CountRequest, request: Request) -> dict[str, int]:
        model = await service.open(request, body.model)
        prepared = await service.prepare(request, model, chat_of(body))
        return {"input_tokens": prepared.num_prompt_tokens}

    return router


class MessageEvents:
    """One message: as a body, or as the events of its blocks."""

    def __init__(self, prepared: PreparedRequest, *, name: str) -> None:
        head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": name}
        self._head, self._prepared = head, prepared
        self._num_tokens = self._num_blocks = 0
        self._in_text = False
        self._end: dict[str, Any] = {}

    def body(self, reply: Reply) -> dict[str, Any]:
        """The whole message."""
        said = [{"type": "text", "text": text} for text in (reply.text, reply.explanation) if text]
        content = [*said, *(_tool_use(call) | {"input": _input(call)} for call in reply.tool_calls)]
        usage = {"input_tokens": self._prepared.num_prompt_tokens, "output_tokens": reply.num_tokens}
        return {**self._head, "content": content or [{"type": "text", "text": ""}], **_stopped(reply), "usage": usage}

    def begin(self) -> Iterator[str]:
        usage = {"input_tokens": self._prepared.num_prompt_tokens, "output_tokens": 0}
        stopped = {"stop_reason": None, "stop_sequence": None}
        yield _event("message_start", message={**self._head, "content": [], **stopped, "usage": usage})

    def push(self, index: int, part: Reply) -> Iterator[str]:
        self._num_tokens += part.num_tokens
        if part.text or (part.finish_reason and not (part.tool_calls or part.explanation or self._num_blocks)):
            if not self._in_text:
                self._in_text = True
                yield from self._begin_block({"type": "text", "text": ""})
            if part.text:
                yield self._delta(type="text_delta", text=part.text)
        if part.finish_reason:
            if self._in_text:
                yield from self._end_block()
            if part.explanation:
                yield from self._begin_block({"type": "text", "text": ""})
                yield self._delta(type="text_delta", text=part.explanation)
                yield from self._end_block()
            for call in part.tool_calls:
                yield from self._begin_block({**_tool_use(call), "input": {}})
                yield self._delta(type="input_json_delta", partial_json=call.arguments_json)
                yield from self._end_block()
            self._end = _stopped(part)

    def end(self) -> Iterator[str]:
        usage = {"input_tokens": self._prepared.num_prompt_tokens, "output_tokens": self._num_tokens}
        yield _event("message_delta", delta=self._end, usage=usage)
        yield _event("message_stop")

    def error(self, error: ApiError) -> Iterator[str]:
        yield event(error.anthropic_body, name="error")  # Anthropic's client raises it

    def _begin_block(self, block: dict[str, Any]) -> Iterator[str]:
        yield _event("content_block_start", index=self._num_blocks, content_block=block)

    def _delta(self, **delta: str) -> str:
        return _event("content_block_delta", index=self._num_blocks, delta=delta)

    def _end_block(self) -> Iterator[str]:
        yield _event("content_block_stop", index=self._num_blocks)
        self._num_blocks += 1
        self._in_text = False


def _event(kind: str, **fields: Any) -> str:
    return event({"type": kind, **fields}, name=kind)


def _tool_use(call: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex}", "name": call.name}


def _input(call: Call) -> dict[str, Any]:
    """The arguments; of a call that was cut off, what can be read of them."""
    return read_arguments(call.arguments_json)


def _stopped(reply: Reply) -> dict[str, Any]:
    sequence = reply.stop_string or None
    reason = "stop_sequence" if sequence else REASONS.get(reply.finish_reason or "", "end_turn")
    return {"stop_reason": reason, "stop_sequence": sequence}
