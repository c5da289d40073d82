"""OpenAI's older completions: texts, or arrays of token ids, continued as they are, without a chat format.

With `echo` and `logprobs` the prompt's own log-probabilities are there too, which is how lm-eval scores answers.
A text gets the begin-of-text token before it, an array of ids is taken as it is.
"""

import codecs
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.answer import TokenLogprob
from herd.engine.reply import Reply
from herd.serve.api.chat import DONE, LEAST, likeliest_replies, usage
from herd.serve.prepare import PreparedRequest
from herd.serve.refusal import ApiError
from herd.serve.schema import TextRequest
from herd.serve.service import Service
from herd.serve.streams import EventStream, cancel_on_disconnect, event, write_events

COMPLETIONS = "/v1/completions"


def routes(service: Service) -> APIRouter:
    """The route of completions."""
    router = APIRouter(tags=["generate"])

    @router.post(COMPLETIONS)
    async def completions(body: TextRequest, request: Request) -> Response:
        model = await service.open(request, body.model)
        prepared = await cancel_on_disconnect(request, model.prepare_texts(body))
        streams = await service.streams(request, model, prepared, body.cache_salt)
        writer = TextEvents(body, prepared, name=model.name, tokenizer=model.tokenizer)
        if body.stream:
            return EventStream(write_events(streams, writer))
        return JSONResponse(writer.body(await service.collect(request, streams)))

    return router


class TextEvents:
    """Completions in OpenAI's form: chunks have the shape of the whole."""

    def __init__(
        self, request: TextRequest, prepared: PreparedRequest, *, name: str, tokenizer: Tokenizer | None
    ) -> None:
        self._request, self._prepared, self._tokenizer = request, prepared, tokenizer
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}
        self._head = {**head, "created": int(time.time()), "model": name}
        self._offsets: dict[int, int] = {}
        """Of each choice, the characters that were sent."""
        self._num_tokens = 0

    def body(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The whole answer, of the replies that were generated."""
        request = self._request
        choices: list[dict[str, Any]] = []
        for at in range(0, len(replies), request.num_generated):
            group = replies[at : at + request.num_generated]
            for reply in likeliest_replies(group, request.num_choices):
                choices.append(self._choice(len(choices), at, self._shortened(reply), is_first=True))
        num_tokens = sum(self._shortened(reply).num_tokens for reply in replies)
        return {**self._head, "choices": choices, "usage": usage(self._prepared.num_prompt_tokens, num_tokens)}

    def begin(self) -> Iterator[str]:
        return iter(())

    def push(self, index: int, part: Reply) -> Iterator[str]:
        part = self._shortened(part)
        self._num_tokens += part.num_tokens
        is_first = index not in self._offsets
        if is_first or part.text or part.logprobs or part.finish_reason:
            extra = {"usage": None} if self._request.with_usage else {}
            yield event({**self._head, "choices": [self._choice(index, index, part, is_first=is_first)], **extra})

    def end(self) -> Iterator[str]:
        if self._request.with_usage:
            yield event(
                {**self._head, "choices": [], "usage": usage(self._prepared.num_prompt_tokens, self._num_tokens)}
            )
        yield DONE

    def error(self, error: ApiError) -> Iterator[str]:
        yield event(error.body)

    def _shortened(self, reply: Reply) -> Reply:
        """Without the one token that the engine had to draw, where none was asked for."""
        if self._request.max_tokens:
            return reply
        return replace(reply, text="", num_tokens=0, logprobs=(), finish_reason=reply.finish_reason and "length")

    def _choice(self, index: int, at: int, reply: Reply, *, is_first: bool) -> dict[str, Any]:
        """A reply, or a part of one, of the prepared choice `at`."""
        text, tokens = reply.text, list(reply.logprobs)
        prompt_ids: list[int] = []
        if self._request.echo and is_first and not reply.refused:
            asked = self._prepared.choices[at]
            text = str(asked.messages[0]["content"]) + text
            prompt_ids = asked.prompt.token_ids if reply.prompt_logprobs else []
            tokens = [*reply.prompt_logprobs, *tokens]
        found = None
        if self._request.logprobs is not None:
            found = self._logprobs(prompt_ids[:1], tokens, self._offsets.get(index, 0))
        self._offsets[index] = self._offsets.get(index, 0) + len(text)
        explained = {"refusal": reply.explanation} if reply.explanation else {}
        return {"index": index, "text": text, "logprobs": found, "finish_reason": reply.finish_reason, **explained}

    def _logprobs(self, first: Sequence[int], tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """`first`: the token before all others, which has no probability."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        strings: list[str] = []
        offsets: list[int] = []
        assert self._tokenizer is not None, "asked for only where the tokens are known"
        special, token_bytes = self._tokenizer.special_ids, self._tokenizer.token_bytes
        for token in [*first, *(one.token_id for one in tokens)]:
            strings.append(self._string(token))
            offsets.append(offset)
            if token not in special:  # begin-of-text is no part of the text
                offset += len(decoder.decode(token_bytes(token)))
        nothing = [None] * len(first)
        return {
            "tokens": strings,
            "token_logprobs": [*nothing, *(max(one.logprob, LEAST) for one in tokens)],
            "top_logprobs": [*nothing, *map(self._top, tokens)],
            "text_offset": offsets,
        }

    def _string(self, token: int) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.token_bytes(token).decode(errors="replace")

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens and the one that is there; of several with one text the likeliest."""
        found = {self._string(one.token_id): max(one.logprob, LEAST)}
        for token, logprob in one.top:
            text = self._string(token)
            found[text] = max(found.get(text, LEAST), logprob)
        return found
