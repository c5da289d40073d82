"""What every API of the server uses: the models, and the way from a request to its replies."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from herd.engine.pipeline import collect
from herd.engine.reply import Reply
from herd.serve.access import caller_of, salt_of
from herd.serve.meter import Usage, usage_of
from herd.serve.metrics import Metrics
from herd.serve.models import LEASES, LocalModel, Models, ServedModel
from herd.serve.pictures import Pictures
from herd.serve.prepare import PreparedRequest
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest
from herd.serve.streams import begun, cancel_on_disconnect


@dataclass(frozen=True, kw_only=True)
class Service:
    """The models of a server."""

    models: Models
    metrics: Metrics
    pictures: Pictures
    guard_name: str = ""
    """Of the gate's guard, where there is one."""
    created: int = field(default_factory=lambda: int(time.time()))

    def card(self, name: str) -> dict[str, Any]:
        """The model in the forms of OpenAI and Anthropic at once, whose names do not collide. Its lengths are there
        once it has been loaded."""
        openai = {"id": name, "object": "model", "created": self.created, "owned_by": "herd"}
        date = datetime.fromtimestamp(self.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        anthropic = {"type": "model", "display_name": name, "created_at": date, "lifecycle": "active"}
        lengths: dict[str, int] = {}
        if (model := self.models.opened(name)) and (context := model.context):
            lengths = dict.fromkeys(("max_model_len", "max_input_tokens", "max_tokens"), context)
        return {**openai, **anthropic, **lengths}

    async def open(self, request: Request, name: str | None) -> ServedModel:
        """The model that a request names, else the default, until the answer has ended; it is loaded where it must be.

        Raises ApiError.
        """
        name = (await self.models.names())[0] if name is None else name
        while (model := self.models.lease(name)) is None:
            await cancel_on_disconnect(request, self.models.load(name))
        leases: ExitStack = request.scope[LEASES]
        leases.callback(self.models.release, name)
        return model

    async def open_local(self, request: Request, name: str | None) -> LocalModel:
        """The same, for what needs the model itself."""
        model = await self.open(request, name)
        if not isinstance(model, LocalModel):
            message = f"{request.scope['path']} is not passed on to the server behind this one: ask that"
            raise ApiError(message, status=404, code="not_passed_on")
        return model

    async def prepare(self, request: Request, model: ServedModel, chat: ChatRequest) -> PreparedRequest:
        """A chat made ready, given up when the client goes away. Raises ApiError."""

        async def prepared() -> PreparedRequest:
            return await model.prepare_chat(await self.pictures.fetched(chat))

        return await cancel_on_disconnect(request, prepared())

    async def streams(
        self, request: Request, model: ServedModel, prepared: PreparedRequest, cache_salt: str | None = None
    ) -> list[AsyncGenerator[Reply, None]]:
        """The replies, each generated once it is read, and counted. Where another server answers it has begun to, so
        that what it refuses has a status of its own. Raises ApiError."""
        usage = usage_of(request)
        usage.add_prompt(prepared.num_prompt_tokens)
        streams = model.streams(prepared, caller=caller_of(request), salt=salt_of(request, cache_salt))
        counted = [_counted(parts, usage, prepared) for parts in streams]
        return counted if isinstance(model, LocalModel) else await cancel_on_disconnect(request, begun(counted))

    def owner(self, request: Request) -> str:
        """Who may see what this request leaves behind."""
        return salt_of(request, None)

    async def collect(self, request: Request, streams: Sequence[AsyncGenerator[Reply, None]]) -> list[Reply]:
        """The whole replies, given up when the client goes away."""
        return await cancel_on_disconnect(request, collect(streams))


async def _counted(
    parts: AsyncGenerator[Reply, None], usage: Usage, prepared: PreparedRequest
) -> AsyncGenerator[Reply, None]:
    async with aclosing(parts):
        async for part in parts:
            usage.add_reply(part.num_tokens, blocked=bool(part.explanation))
            if prepared.num_prompt_tokens > usage.prompt_tokens:
                usage.add_prompt(prepared.num_prompt_tokens - usage.prompt_tokens)
            yield part
