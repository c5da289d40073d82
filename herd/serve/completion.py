"""One chat completion from OpenAI's request to OpenAI's answer: what the server and files of requests share."""

import asyncio
import dataclasses
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.pipeline import AnswerPipeline, ReplyRequest
from herd.engine.reply import Reply
from herd.engine.sampler import SamplingParams, choice_seeds
from herd.errors import HerdError
from herd.serve.forms import form_of
from herd.serve.messages import read_conversation
from herd.serve.refusal import ApiError
from herd.serve.responses import choice, likeliest_replies, usage
from herd.serve.schema import ChatRequest, check_fields


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A request that is ready to be answered."""

    request: ChatRequest
    choices: list[ReplyRequest]
    """One for each reply that is generated."""
    tokenizer: Tokenizer | None
    """Where log-probabilities are asked for."""
    head: dict[str, Any]
    """The fields that the whole answer and every chunk of it begin with."""

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.choices[0].prompt.token_ids)

    def streams(
        self, pipeline: AnswerPipeline, *, caller: str = "", salt: str = ""
    ) -> list[AsyncGenerator[Reply, None]]:
        """The replies, each generated once it is read."""
        return [pipeline.stream(one, caller=caller, salt=salt) for one in self.choices]

    def body(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """OpenAI's answer, of the replies that were generated."""
        request = self.request
        chosen = (
            likeliest_replies(replies, request.num_choices) if request.num_generated > request.num_choices else replies
        )
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [choice(index, reply, self.tokenizer) for index, reply in enumerate(chosen)],
            "usage": usage(self.num_prompt_tokens, sum(reply.num_tokens for reply in replies)),
        }


async def prepare_completion(
    pipeline: AnswerPipeline,
    request: ChatRequest,
    defaults: SamplingParams,
    *,
    name: str,
    max_tokens: int | None = None,
) -> Completion:
    """What to ask the engine; `defaults` and `max_tokens` (None: the room in the context) where the request has none.

    Raises ApiError. When cancelled, the decoding of pictures and videos ends with the next frame.
    """
    check_fields(request)
    params = request.sampling(defaults)
    params = dataclasses.replace(params, max_tokens=request.limit or max_tokens or pipeline.engine.max_model_len)
    cancelled = threading.Event()

    def prepare() -> ReplyRequest:
        return pipeline.request(read_conversation(request, cancelled.is_set), params)

    try:
        asked = await asyncio.to_thread(prepare)
    finally:
        cancelled.set()
    try:
        asked = pipeline.fit(asked, cut=request.limit is None)
    except HerdError as error:
        raise ApiError(str(error), param="messages", code="context_length_exceeded") from None
    if form := form_of(request):
        structure, field = form
        try:  # compiled here, where nobody else waits for it
            await asyncio.to_thread(pipeline.model.structures.start, structure)
        except HerdError as error:
            raise ApiError(f"{field}: {error}", param=field) from None
        asked = dataclasses.replace(asked, params=dataclasses.replace(asked.params, structure=structure))
    return Completion(
        request=request,
        choices=_choices(asked, request.num_generated),
        tokenizer=pipeline.model.tokenizer if request.logprobs else None,
        head={"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name},
    )


def _choices(request: ReplyRequest, count: int) -> list[ReplyRequest]:
    """Several requests of one prompt; under a seed each has one that is derived from it."""
    if request.params.seed is None:
        return [request] * count
    return [
        dataclasses.replace(request, params=dataclasses.replace(request.params, seed=seed))
        for seed in choice_seeds(request.params.seed, count)
    ]
