"""One chat completion from the request to OpenAI's answer: what the server and files of requests share."""

import asyncio
import dataclasses
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from herd.core.errors import HerdError
from herd.data.tokenizer import Tokenizer
from herd.engine.engine import Engine
from herd.engine.sampler import SamplingParams
from herd.serve.forms import form_of
from herd.serve.messages import chat_messages
from herd.serve.refusal import ApiError
from herd.serve.reply import Said, answer, best, choice, usage
from herd.serve.schema import ChatRequest, checked
from herd.serve.session import choices, fitted

if TYPE_CHECKING:
    from herd.engine.load import Model, Prompt


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A request made ready."""

    request: ChatRequest
    prompt: "Prompt"
    params: list[SamplingParams]
    """Of each answer that is made."""
    tokenizer: Tokenizer | None
    """Where log-probabilities are asked for."""
    head: dict[str, Any]
    """What the whole answer and every piece of it begin with."""

    def answers(self, engine: Engine, *, caller: str = "", salt: str = "") -> list[AsyncGenerator[Said, None]]:
        """The answers, which are made once they are read."""
        names = [tool["function"]["name"] for tool in self.request.offered]
        return [answer(engine, self.prompt, one, names, caller=caller, salt=salt) for one in self.params]

    def body(self, drawn: Sequence[Said]) -> dict[str, Any]:
        """OpenAI's answer, of the answers that were made."""
        request = self.request
        chosen = best(drawn, request.num_choices) if request.num_drawn > request.num_choices else drawn
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [choice(index, said, self.tokenizer) for index, said in enumerate(chosen)],
            "usage": usage(len(self.prompt.token_ids), sum(said.num_tokens for said in drawn)),
        }


async def prepared(
    model: "Model",
    engine: Engine,
    request: ChatRequest,
    defaults: SamplingParams,
    *,
    name: str,
    max_tokens: int | None = None,
) -> Completion:
    """What to ask the engine; `defaults` and `max_tokens` (None: the room in the context) are of a silent request.

    Raises ApiError. Cancelled, the decoding of pictures and videos ends with the next frame.
    """
    checked(request)
    cancelled = threading.Event()

    def render() -> "Prompt":
        return model.render(chat_messages(request, cancelled.is_set), tools=request.offered)

    try:
        prompt = await asyncio.to_thread(render)
    finally:
        cancelled.set()
    try:
        params = fitted(prompt, request.sampling(defaults), max_tokens=request.limit, context=engine.capacity)
    except HerdError as error:
        raise ApiError(str(error), param="messages", code="context_length_exceeded") from None
    if request.limit is None and max_tokens is not None:
        params = dataclasses.replace(params, max_tokens=min(max_tokens, params.max_tokens))
    if form := form_of(request):
        structure, field = form
        try:  # compiled here, where nobody else waits for it
            await asyncio.to_thread(model.structures.start, structure)
        except HerdError as error:
            raise ApiError(f"{field}: {error}", param=field) from None
        params = dataclasses.replace(params, structure=structure)
    return Completion(
        request=request,
        prompt=prompt,
        params=choices(params, request.num_drawn),
        tokenizer=model.tokenizer if request.logprobs else None,
        head={"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name},
    )
