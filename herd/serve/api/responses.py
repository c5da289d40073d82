"""OpenAI's Responses API: whole or streamed, with tools and pictures, going on from a response before.

`previous_response_id` names a response in a bounded store in memory (`ResponseStore`), which a restart empties.
"""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.answer import TokenLogprob
from herd.engine.reply import Reply, tool_call_objects
from herd.serve.api.chat import logprobs
from herd.serve.api.responses_schema import ResponsesRequest, chat_of
from herd.serve.api.responses_store import ResponseStore, StoredResponse
from herd.serve.prepare import PreparedRequest
from herd.serve.refusal import ApiError
from herd.serve.service import Service
from herd.serve.streams import EventStream, event, write_events

RESPONSES = "/v1/responses"


def routes(service: Service) -> APIRouter:
    """The routes of responses."""
    router = APIRouter(tags=["generate"])
    store = ResponseStore()

    def find(request: Request, response_id: str, param: str | None = None) -> StoredResponse:
        found = store.get(service.owner(request), response_id)
        if found is None:
            message = f"there is no response {response_id!r} (any more): send the whole conversation"
            raise ApiError(message, status=404 if param is None else 400, param=param, code="response_not_found")
        return found

    @router.post(RESPONSES)
    async def create(body: ResponsesRequest, request: Request) -> Response:
        model = await service.open(request, body.model)
        before = body.previous_response_id
        history = list(find(request, before, "previous_response_id").items) if before else []
        try:
            prepared = await service.prepare(request, model, chat_of(body, history))
        except ApiError as error:  # its fields are those of a chat
            if error.param and error.param.startswith("messages"):
                raise ApiError(error.message, status=error.status, param="input", code=error.code) from None
            raise
        owner, given = service.owner(request), [*history, *body.items]

        def keep(made: dict[str, Any]) -> None:
            if body.store is not False:
                store.put(owner, made, given, made["output"])

        streams = await service.streams(request, model, prepared, body.cache_salt)
        writer = ResponseEvents(body, prepared, name=model.name, tokenizer=model.tokenizer, keep=keep)
        if body.stream:
            return EventStream(write_events(streams, writer))
        [reply] = await service.collect(request, streams)
        return JSONResponse(writer.body(reply))

    @router.get(RESPONSES + "/{response_id}")
    async def retrieve(response_id: str, request: Request) -> dict[str, Any]:
        return find(request, response_id).body

    @router.delete(RESPONSES + "/{response_id}")
    async def delete(response_id: str, request: Request) -> dict[str, Any]:
        find(request, response_id)
        store.delete(service.owner(request), response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.get(RESPONSES + "/{response_id}/input_items")
    async def input_items(response_id: str, request: Request) -> dict[str, Any]:
        found = find(request, response_id)
        data = [{"id": f"item_{i}", **item} for i, item in enumerate(found.items[: found.num_input])]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return {"object": "list", "data": data, "has_more": False, **ends}

    return router


class ResponseEvents:
    """One response: as a body, or as the events that build it up."""

    def __init__(
        self,
        request: ResponsesRequest,
        prepared: PreparedRequest,
        *,
        name: str,
        tokenizer: Tokenizer | None,
        keep: Any = lambda made: None,
    ) -> None:
        """`keep` is called with the finished response."""
        self._prepared, self._keep = prepared, keep
        self._tokenizer = tokenizer if request.with_logprobs else None
        self._head = self._make_head(request, prepared, name)
        self._number = 0
        self._num_tokens = 0
        self._output: list[dict[str, Any]] = []
        self._text = ""
        self._tokens: list[TokenLogprob] = []
        self._message: dict[str, Any] | None = None
        """The item that is being written."""
        self._reason: str | None = None

    def body(self, reply: Reply) -> dict[str, Any]:
        """The whole response."""
        for _ in (*self.push(0, reply), *self.end()):
            pass
        return self._made

    def begin(self) -> Iterator[str]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress"))

    def push(self, index: int, part: Reply) -> Iterator[str]:
        self._num_tokens += part.num_tokens
        if part.text:
            yield from self._open_message()
            self._text += part.text
            self._tokens += part.logprobs
            found = self._logprobs(part.logprobs)
            yield self._text_event("response.output_text.delta", delta=part.text, logprobs=found)
        elif part.logprobs:
            self._tokens += part.logprobs
        if part.finish_reason:
            self._reason = part.finish_reason
            if not (self._message or part.tool_calls or part.explanation):  # an empty answer is one all the same
                yield from self._open_message()
            yield from self._close_message(part)
            for call in tool_call_objects(part.tool_calls):
                yield from self._call(call)

    def end(self) -> Iterator[str]:
        cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(self._reason or "")
        status = "incomplete" if cut else "completed"
        self._made = self._response(status, incomplete_details={"reason": cut} if cut else None, usage=self._usage())
        self._keep(self._made)
        yield self._event(f"response.{status}", response=self._made)

    def error(self, error: ApiError) -> Iterator[str]:
        failure = {"code": "server_error", "message": error.message}
        yield self._event("response.failed", response=self._response("failed", error=failure))

    def _open_message(self) -> Iterator[str]:
        if self._message is None:
            item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
            self._message = {**item, "status": "in_progress", "content": []}
            yield self._event("response.output_item.added", output_index=len(self._output), item=self._message)
            part = {"type": "output_text", "text": "", "annotations": []}
            yield self._text_event("response.content_part.added", part=part)

    def _close_message(self, last: Reply) -> Iterator[str]:
        content: list[dict[str, Any]] = []
        if self._message is not None:
            found = self._logprobs(self._tokens)
            content.append({"type": "output_text", "text": self._text, "annotations": [], "logprobs": found})
            yield self._text_event("response.output_text.done", text=self._text, logprobs=found)
            yield self._text_event("response.content_part.done", part=content[0])
        if last.explanation:
            yield from self._refuse(last.explanation, len(content))
            content.append({"type": "refusal", "refusal": last.explanation})
        if self._message is not None:
            status = "incomplete" if last.finish_reason in ("length", "content_filter") else "completed"
            item = {**self._message, "status": status, "content": content}
            yield self._event("response.output_item.done", output_index=len(self._output), item=item)
            self._output.append(item)
            self._message = None

    def _refuse(self, explanation: str, index: int) -> Iterator[str]:
        """The refusal in place of what was blocked, as a part of the message."""
        if self._message is None:
            item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
            self._message = {**item, "status": "in_progress", "content": []}
            yield self._event("response.output_item.added", output_index=len(self._output), item=self._message)
        for kind, fields in (
            ("response.content_part.added", {"part": {"type": "refusal", "refusal": ""}}),
            ("response.refusal.delta", {"delta": explanation}),
            ("response.refusal.done", {"refusal": explanation}),
            ("response.content_part.done", {"part": {"type": "refusal", "refusal": explanation}}),
        ):
            yield self._text_event(kind, index, **fields)

    def _call(self, call: dict[str, Any]) -> Iterator[str]:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "call_id": call["id"], "name": name}
        place = {"output_index": len(self._output)}
        of_item = {**place, "item_id": item["id"]}
        added = {**item, "arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", **place, item=added)
        yield self._event("response.function_call_arguments.delta", **of_item, delta=arguments)
        yield self._event("response.function_call_arguments.done", **of_item, arguments=arguments, name=name)
        done = {**item, "arguments": arguments, "status": "incomplete" if self._reason == "length" else "completed"}
        yield self._event("response.output_item.done", **place, item=done)
        self._output.append(done)

    def _logprobs(self, tokens: Any) -> list[dict[str, Any]]:
        found = logprobs(tokens, self._tokenizer)
        return found["content"] if found else []

    def _text_event(self, kind: str, content_index: int = 0, **fields: Any) -> str:
        assert self._message is not None
        place = {"output_index": len(self._output), "content_index": content_index, "item_id": self._message["id"]}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **fields}, name=kind)

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self._prepared.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self._num_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._prepared.num_prompt_tokens + self._num_tokens,
        }

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        empty = {"error": None, "incomplete_details": None, "usage": None}
        return {**self._head, **empty, "status": status, "output": list(self._output), **fields}

    def _make_head(self, request: ResponsesRequest, prepared: PreparedRequest, name: str) -> dict[str, Any]:
        params = prepared.choices[0].params
        asked = request.model_dump(by_alias=True, exclude_none=True)
        return {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": name,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "store": request.store is not False,
            "temperature": params.temperature,
            "text": asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice", "auto"),
            "tools": [{"strict": False, "parameters": {}, **tool} for tool in asked.get("tools", ())],
            "top_p": params.top_p,
            "truncation": "disabled",
        }
