"""The one way from a conversation to a reply, of server, terminal, batch generation, evaluation and `Model.chat`.

    conversation -> gate -> prompt -> engine -> stop strings -> filters -> the gate's filter -> tool calls -> reply

`AnswerPipeline` holds what is the same for all replies of a program: the model, the engine, which filters there are,
and the gate that judges both sides.
`stream` is for event loops, `iterate` for code without one; both feed a `ReplyBuilder`.
Left out: the forms of clients (herd.serve) and tokens without text (`Engine`).
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any

from herd.engine.conversation import Conversation
from herd.engine.engine import Engine
from herd.engine.filters import Gate, StreamFilter
from herd.engine.model import LoadedModel, Prompt
from herd.engine.reply import Reply, ReplyBuilder, join_reply
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class ReplyRequest:
    """What the engine is asked, and how its answer is read."""

    prompt: Prompt
    params: SamplingParams
    tool_names: tuple[str, ...] = ()
    """Calls of these are read as calls."""
    messages: Sequence[Mapping[str, Any]] = ()
    """What the gate judges."""


class AnswerPipeline:
    """Replies by one engine; `filters` are made anew for each reply, and run in this order."""

    def __init__(
        self,
        model: LoadedModel,
        engine: Engine,
        *,
        filters: Sequence[Callable[[], StreamFilter]] = (),
        gate: Gate | None = None,
    ) -> None:
        self.model, self.engine, self._filters, self.gate = model, engine, filters, gate

    def request(self, conversation: Conversation, params: SamplingParams) -> ReplyRequest:
        """The request for the assistant's next message."""
        prompt = conversation.render(self.model)
        return ReplyRequest(
            prompt=prompt, params=params, tool_names=conversation.tool_names, messages=conversation.with_system
        )

    def fit(self, request: ReplyRequest, *, cut: bool = True) -> ReplyRequest:
        """With `max_tokens` cut to the room that the prompt leaves in the context.

        Raises HerdError where it leaves none; without `cut`, also where it leaves less than `max_tokens`.
        """
        num_tokens, context = len(request.prompt.token_ids), self.engine.max_model_len
        room, wanted = context - num_tokens, request.params.max_tokens
        if room < 1:
            raise HerdError(
                f"the conversation has {num_tokens} tokens, the model's context {context}: leave out earlier messages"
            )
        if wanted > room and not cut:
            raise HerdError(
                f"{num_tokens} tokens of conversation and max_tokens={wanted} are more than the model's context of "
                f"{context}: lower max_tokens to {room} or leave out earlier messages"
            )
        return dataclasses.replace(request, params=dataclasses.replace(request.params, max_tokens=min(wanted, room)))

    async def stream(self, request: ReplyRequest, *, caller: str = "", salt: str = "") -> AsyncGenerator[Reply, None]:
        """The reply in parts, as they come; closing the iterator cancels the generation."""
        if self.gate and (refused := await asyncio.to_thread(self._refusal, self.gate, request, caller)):
            yield refused
            return
        builder = self._builder(request, caller)
        pieces = self.engine.generate(request.prompt, request.params, caller=caller, salt=salt)
        async with aclosing(pieces):
            async for piece in pieces:
                part = await asyncio.to_thread(builder.push, piece) if self.gate else builder.push(piece)
                yield part
                if part.finish_reason:
                    return

    def iterate(self, request: ReplyRequest) -> Iterator[Reply]:
        """As `stream`, for code without an event loop."""
        if self.gate and (refused := self._refusal(self.gate, request)):
            yield refused
            return
        builder = self._builder(request)
        with closing(self.engine.stream(request.prompt, request.params)) as pieces:
            for piece in pieces:
                part = builder.push(piece)
                yield part
                if part.finish_reason:
                    return

    def replies(self, requests: Sequence[ReplyRequest]) -> list[Reply]:
        """Whole replies, made at the same time, in the order of the requests."""
        return asyncio.run(collect([self.stream(request) for request in requests]))

    def _builder(self, request: ReplyRequest, caller: str = "") -> ReplyBuilder:
        filters = [make() for make in self._filters]
        if self.gate:
            filters.append(self.gate.filter(request.messages, caller))
        return ReplyBuilder(request.tool_names, filters, prompt_ids=request.prompt.token_ids)

    def _refusal(self, gate: Gate, request: ReplyRequest, caller: str = "") -> Reply | None:
        verdict = gate.check(request.messages, caller)
        if verdict is None:
            return None
        return Reply(
            text="", finish_reason=verdict.finish_reason, num_tokens=0, explanation=verdict.explanation, refused=True
        )


async def collect(streams: Sequence[AsyncGenerator[Reply, None]]) -> list[Reply]:
    """The whole replies of several streams, read at the same time; one that fails ends them all."""

    async def whole(parts: AsyncGenerator[Reply, None]) -> Reply:
        async with aclosing(parts):
            return join_reply([part async for part in parts])

    tasks = [asyncio.create_task(whole(parts)) for parts in streams]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
