"""An answer by the server behind this one, for the channels: the same guard, and the same refusals."""

import asyncio
import base64
import hashlib
import io
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from herd.engine.filters import Gate
from herd.engine.reply import Reply, join_reply
from herd.errors import HerdError
from herd.guard.stream import BLOCKED
from herd.serve.channels.answer import messages_of
from herd.serve.channels.config import Options
from herd.serve.channels.delivery import Answer, Turn
from herd.serve.refusal import ApiError
from herd.serve.upstream import Upstream, UpstreamModel
from herd.serve.upstream_client import UpstreamClient


class UpstreamAnswerer:
    """Answers by the first model of the other server."""

    def __init__(self, make_client: Callable[[], UpstreamClient], gate: Gate | None, options: Options) -> None:
        """`make_client` is called in the event loop that answers, which is not the server's."""
        self._make_client, self._gate, self._options = make_client, gate, options
        self._models: Upstream | None = None

    async def answer(self, turn: Turn) -> Answer:
        """The whole answer. Raises HerdError where there is none. Earlier messages are left out, the older half at a
        time, while the other server refuses the request."""
        if self._models is None:
            self._models = Upstream(self._make_client(), gate=self._gate)
        history = list(turn.history)
        try:
            [name, *_] = await self._models.names()
            model = self._models.lease(name)
            assert model is not None
            while True:
                messages = messages_of([*history, ("user", turn.text, turn.pictures)])
                try:
                    return await self._ask(model, messages, turn.caller)
                except ApiError as error:
                    if error.status != 400 or not history:
                        raise
                    history = history[len(history) // 2 + 1 :]
        except ApiError as error:
            raise HerdError(error.message) from None

    async def _ask(self, model: UpstreamModel, messages: list[dict[str, Any]], caller: str) -> Answer:
        system = [{"role": "system", "content": self._options.system}] if self._options.system else []
        asked = [*system, *await asyncio.to_thread(lambda: [_in_openai_form(one) for one in messages])]
        body = {
            "model": model.name,
            "messages": asked,
            "max_tokens": self._options.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_salt": hashlib.blake2b(caller.encode(), digest_size=16).hexdigest(),
        }
        parts: list[Reply] = []
        async with aclosing(model.replies("/chat/completions", body, [*system, *messages], caller)) as stream:
            async for part, _ in stream:
                parts.append(part)
        reply = join_reply(parts)
        if reply.finish_reason == BLOCKED:
            return Answer(text=reply.explanation or reply.text, blocked=True)
        return Answer(text=reply.text)


def _in_openai_form(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its pictures as data: URLs."""
    if isinstance(message["content"], str):
        return message
    parts = []
    for part in message["content"]:
        if part["type"] == "image":
            data = io.BytesIO()
            part["image"].convert("RGB").save(data, "PNG")
            url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
            part = {"type": "image_url", "image_url": {"url": url}}
        parts.append(part)
    return {**message, "content": parts}
