"""What every API of the server uses: the pipeline, the model's name, and the way from a request to its replies."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from herd.engine.pipeline import AnswerPipeline, collect
from herd.engine.reply import Reply
from herd.engine.sampler import SamplingParams
from herd.serve.access import caller_of, salt_of
from herd.serve.meter import Usage, usage_of
from herd.serve.metrics import Metrics
from herd.serve.prepare import PreparedRequest, prepare_chat
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest
from herd.serve.streams import cancel_on_disconnect


@dataclass(frozen=True, kw_only=True)
class Service:
    """One loaded model, served."""

    pipeline: AnswerPipeline
    name: str
    params: SamplingParams
    """The defaults of a request."""
    metrics: Metrics
    guard_name: str = ""
    """Of the gate's guard, where there is one."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def card(self) -> dict[str, Any]:
        """The model in the forms of OpenAI and Anthropic at once, whose names do not collide."""
        context = self.pipeline.engine.max_model_len
        openai = {"id": self.name, "object": "model", "created": self.created, "owned_by": "herd"}
        date = datetime.fromtimestamp(self.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        anthropic = {"type": "model", "display_name": self.name, "created_at": date, "lifecycle": "active"}
        return {**openai, **anthropic, "max_model_len": context, "max_input_tokens": context, "max_tokens": context}

    def check_model(self, asked: str) -> None:
        if asked != self.name:
            message = f"the model {asked!r} is not served here: use {self.name!r}"
            raise ApiError(message, status=404, param="model", code="model_not_found")

    async def prepare(self, request: Request, chat: ChatRequest) -> PreparedRequest:
        """A chat made ready, given up when the client goes away. Raises ApiError."""
        self.check_model(chat.model)
        return await cancel_on_disconnect(request, prepare_chat(self.pipeline, chat, self.params))

    def streams(
        self, request: Request, prepared: PreparedRequest, cache_salt: str | None = None
    ) -> list[AsyncGenerator[Reply, None]]:
        """The replies, each generated once it is read, and counted."""
        usage = usage_of(request)
        usage.add_prompt(prepared.num_prompt_tokens)
        streams = prepared.streams(self.pipeline, caller=caller_of(request), salt=salt_of(request, cache_salt))
        return [_counted(parts, usage) for parts in streams]

    def owner(self, request: Request) -> str:
        """Who may see what this request leaves behind."""
        return salt_of(request, None)

    async def collect(self, request: Request, streams: Sequence[AsyncGenerator[Reply, None]]) -> list[Reply]:
        """The whole replies, given up when the client goes away."""
        return await cancel_on_disconnect(request, collect(streams))


async def _counted(parts: AsyncGenerator[Reply, None], usage: Usage) -> AsyncGenerator[Reply, None]:
    async with aclosing(parts):
        async for part in parts:
            usage.add_reply(part.num_tokens, blocked=bool(part.explanation))
            yield part
