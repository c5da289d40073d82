"""OpenAI's embeddings: unit vectors, the mean of the last layer's hidden states over all tokens of a text.

No model here was trained to compare texts this way, so they serve for rough neighbourhoods and no more. A text is
computed between two steps of the engine, which waits for one at a time.
"""

import array
import asyncio
import base64
from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request

from herd.engine.model import Prompt
from herd.errors import HerdError
from herd.serve.meter import usage_of
from herd.serve.models import LocalModel
from herd.serve.refusal import ApiError, Object
from herd.serve.schema import Prompts, each_prompt
from herd.serve.service import Service
from herd.serve.streams import cancel_on_disconnect


class EmbeddingRequest(Object):
    ignored: ClassVar = frozenset({"user"})
    unsupported: ClassVar = {"dimensions": ()}

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None


def routes(service: Service) -> APIRouter:
    """The route of embeddings."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> dict[str, Any]:
        model = await service.open_local(request, body.model)
        prompts = [_prompt(model, one) for one in each_prompt(body.input)]
        try:
            vectors = await cancel_on_disconnect(request, _vectors(model, prompts))
        except HerdError as error:
            raise ApiError(f"input: {error}", param="input") from None
        count = sum(len(prompt.token_ids) for prompt in prompts)
        usage_of(request).add_prompt(count)
        data = [
            {"object": "embedding", "index": index, "embedding": _packed(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "model": model.name, "data": data, "usage": usage}

    return router


async def _vectors(model: LocalModel, prompts: list[Prompt]) -> list[list[float]]:
    """One after another, so that one whose client has gone is the last."""
    found = []
    for prompt in prompts:
        found += await asyncio.to_thread(model.pipeline.engine.embed, [prompt])
    return found


def _prompt(served: LocalModel, given: str | list[int]) -> Prompt:
    model = served.pipeline.model
    prompt = model.prompt_of_text(given) if isinstance(given, str) else Prompt(token_ids=given)
    size = model.tokenizer.vocab_size
    if any(token >= size for token in prompt.token_ids):
        raise ApiError(f"input: each token must be below {size}", param="input")
    return prompt


def _packed(vector: list[float], form: str | None) -> list[float] | str:
    if form != "base64":
        return vector
    numbers = array.array("f", vector)
    return base64.b64encode(numbers.tobytes()).decode()
