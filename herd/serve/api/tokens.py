"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them, so that lm-eval needs no tokenizer of its own."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from herd.serve.message_schema import Message, Text
from herd.serve.messages import read_conversation
from herd.serve.models import LocalModel
from herd.serve.refusal import ApiError, Object
from herd.serve.schema import MAX_PROMPT_CHARS, ChatRequest, Token, Tool
from herd.serve.service import Service

MAX_TOKENS = 4 * 2**20


class TokenizeRequest(Object):
    """Either a text or messages."""

    model: str | None = None
    prompt: Annotated[Text, Field(max_length=MAX_PROMPT_CHARS)] | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = True
    """Whether begin-of-text comes before a text."""
    return_token_strs: bool = False


class DetokenizeRequest(Object):
    model: str | None = None
    tokens: Annotated[list[Token], Field(max_length=MAX_TOKENS)]


def routes(service: Service) -> APIRouter:
    """The routes of the tokenizer."""
    router = APIRouter(tags=["tokenize"])

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
        model = await service.open_local(request, body.model)
        return await asyncio.to_thread(_tokenize, model, body)

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
        tokenizer = (await service.open_local(request, body.model)).tokenizer
        size = tokenizer.vocab_size
        if wrong := next((one for one in body.tokens if one >= size), None):
            raise ApiError(f"tokens: there is no token {wrong}, the tokenizer has {size}", param="tokens")
        return {"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special=False)}

    @router.get("/tokenizer_info")
    async def tokenizer_info(request: Request, model: str | None = None) -> dict[str, Any]:
        served = await service.open_local(request, model)
        tokenizer = served.tokenizer
        names = {name: text for name, text in tokenizer.names.items() if isinstance(text, str)}
        facts = {"tokenizer_class": "PreTrainedTokenizerFast", "vocab_size": tokenizer.vocab_size}
        return {**facts, **names, "model_max_length": served.context, "chat_template": tokenizer.chat_template}

    return router


def _tokenize(served: LocalModel, body: TokenizeRequest) -> dict[str, Any]:
    model, tokenizer = served.pipeline.model, served.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise ApiError("send either prompt or messages", param="prompt")
    if body.messages is not None:
        chat = ChatRequest(model=served.name, messages=body.messages, tools=body.tools)
        ids = read_conversation(chat).render(model).token_ids
    elif body.prompt in tokenizer.special:
        # Alone, the name of a control token is that token; inside a text it is text, as everywhere here.
        ids = [tokenizer.special[body.prompt]]
    else:
        assert body.prompt is not None
        with_bos = model.prompt_of_text if body.add_special_tokens else None
        ids = with_bos(body.prompt).token_ids if with_bos else tokenizer.encode(body.prompt)
    strings = [tokenizer.token_bytes(one).decode(errors="replace") for one in ids]
    answer = {"count": len(ids), "max_model_len": served.context, "tokens": ids}
    return answer | {"token_strs": strings if body.return_token_strs else None}
