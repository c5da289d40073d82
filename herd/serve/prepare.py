"""From an API's request to what the engine is asked: what the server and files of requests share.

Every API of conversations becomes a `ChatRequest` first, so that there is one reading of messages, tools and forms.
"""

import asyncio
import dataclasses
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from herd.engine.model import Prompt
from herd.engine.pipeline import AnswerPipeline, ReplyRequest
from herd.engine.reply import Reply
from herd.engine.sampler import SamplingParams, choice_seeds
from herd.engine.structure import Structure
from herd.errors import HerdError
from herd.serve.forms import form_of
from herd.serve.messages import read_conversation
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest, TextRequest, check_fields, check_text_fields


@dataclass(kw_only=True)
class PreparedRequest:
    """A request that is ready to be answered."""

    choices: list[ReplyRequest]
    """One for each reply that is generated."""
    num_prompt_tokens: int
    """Of all its prompts, each once. Where another server counts them it is known with the last parts of replies."""

    def streams(
        self, pipeline: AnswerPipeline, *, caller: str = "", salt: str = ""
    ) -> list[AsyncGenerator[Reply, None]]:
        """The replies, each generated once it is read."""
        return [pipeline.stream(one, caller=caller, salt=salt) for one in self.choices]


async def prepare_chat(
    pipeline: AnswerPipeline, request: ChatRequest, defaults: SamplingParams, *, max_tokens: int | None = None
) -> PreparedRequest:
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
    asked = _fit(pipeline, asked, cut=request.limit is None, param="messages")
    if form := await asyncio.to_thread(form_of, request):
        asked = await _with_form(pipeline, asked, *form)
    num_prompt = len(asked.prompt.token_ids)
    return PreparedRequest(choices=_choices(asked, request.num_generated), num_prompt_tokens=num_prompt)


async def prepare_texts(pipeline: AnswerPipeline, request: TextRequest, defaults: SamplingParams) -> PreparedRequest:
    """The same for texts to be continued as they are: the choices of each prompt follow each other."""
    check_text_fields(request)
    params = dataclasses.replace(request.sampling(defaults), max_tokens=request.max_tokens or 1)
    model, choices, num_prompt = pipeline.model, [], 0

    def prepare(given: str | list[int]) -> ReplyRequest:
        prompt = model.prompt_of_text(given) if isinstance(given, str) else Prompt(token_ids=list(given))
        size = model.tokenizer.vocab_size
        if not prompt.token_ids or max(prompt.token_ids) >= size:
            raise HerdError(f"a prompt needs one token at least, each below {size}")
        text = given if isinstance(given, str) else model.tokenizer.decode(list(given), skip_special=False)
        # A guard judges the text as something that a user says.
        return ReplyRequest(prompt=prompt, params=params, messages=[{"role": "user", "content": text}])

    for given in request.prompts:
        try:
            asked = await asyncio.to_thread(prepare, given)
        except HerdError as error:
            raise ApiError(f"prompt: {error}", param="prompt") from None
        asked = _fit(pipeline, asked, cut=False, param="prompt")
        for kind in ("regex", "grammar"):
            if source := getattr(request, kind):
                asked = await _with_form(pipeline, asked, Structure(kind=kind, source=source), kind)
        num_prompt += len(asked.prompt.token_ids)
        choices += _choices(asked, request.num_generated)
    return PreparedRequest(choices=choices, num_prompt_tokens=num_prompt)


def _fit(pipeline: AnswerPipeline, asked: ReplyRequest, *, cut: bool, param: str) -> ReplyRequest:
    try:
        return pipeline.fit(asked, cut=cut)
    except HerdError as error:
        raise ApiError(str(error), param=param, code="context_length_exceeded") from None


async def _with_form(pipeline: AnswerPipeline, asked: ReplyRequest, structure: Structure, field: str) -> ReplyRequest:
    try:  # compiled here, where nobody else waits for it
        await asyncio.to_thread(pipeline.model.structures.start, structure)
    except HerdError as error:
        raise ApiError(f"{field}: {error}", param=field) from None
    return dataclasses.replace(asked, params=dataclasses.replace(asked.params, structure=structure))


def _choices(request: ReplyRequest, count: int) -> list[ReplyRequest]:
    """Several requests of one prompt; under a seed each has one that is derived from it."""
    if request.params.seed is None:
        return [request] * count
    return [
        dataclasses.replace(request, params=dataclasses.replace(request.params, seed=seed))
        for seed in choice_seeds(request.params.seed, count)
    ]
