"""A line of a file of prompts, and what its answer's line has beside `number` and `key`.

Two kinds: ours, of which every further field (`custom_id`, `label`, …) is passed on to the answer; and OpenAI's batch
file, `{"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}`, whose answer is OpenAI's too.
The `model` of a body does not count: the folder does.
"""

import asyncio
import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from herd.core.streams import seed_of
from herd.data.tokens.chat import checked_text
from herd.engine.conversation import Conversation, short
from herd.engine.pipeline import AnswerPipeline, ReplyRequest, collect
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.serve.api.chat import chat_body
from herd.serve.prepare import prepare_chat
from herd.serve.refusal import ApiError, validation_error
from herd.serve.schema import ChatRequest

FORMS = ("prompt", "messages", "text")
OWN = frozenset({"number", "key", "finish_reason", "prompt_tokens", "tokens", "error"})
"""The fields that an answer's line has itself."""
URL = "/v1/chat/completions"


def is_failed(answer: dict[str, Any]) -> bool:
    """Whether this line holds an error."""
    return answer.get("error") is not None or answer.get("response", {}).get("status_code", 200) != 200


def is_openai(asked: Any) -> bool:
    """Whether a line is of OpenAI's batch file."""
    return isinstance(asked, dict) and "body" in asked and not asked.keys() & set(FORMS)


class Lines:
    """Answers lines by one pipeline."""

    def __init__(self, pipeline: AnswerPipeline, params: SamplingParams, *, folder: Path, name: str) -> None:
        """Paths begin at `folder`; `name` is the model's."""
        self._pipeline, self._params, self._folder, self._name = pipeline, params, folder, name

    async def answer(self, line: str, number: int, key: str) -> tuple[dict[str, Any], int]:
        """The fields of the answer's line, and how many tokens were generated."""
        params = dataclasses.replace(self._params, seed=seed_of(self._params.seed or 0, "prompt", number))
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError) as error:
            return {"error": f"not JSON ({error})"}, 0
        if is_openai(asked):
            return await self._openai(asked, key, params)
        try:
            extra = _extra(asked)
        except HerdError as error:
            return {"error": str(error)}, 0
        try:
            request = await asyncio.to_thread(self._request, asked, params)
            [reply] = await collect([self._pipeline.stream(request)])
        except HerdError as error:
            return {**extra, "error": str(error)}, 0
        num_prompt = len(request.prompt.token_ids)
        answer = {"text": reply.text, "finish_reason": reply.finish_reason, "prompt_tokens": num_prompt}
        return {**extra, **answer, "tokens": reply.num_tokens}, reply.num_tokens

    async def _openai(self, asked: dict[str, Any], key: str, params: SamplingParams) -> tuple[dict[str, Any], int]:
        status, tokens = 200, 0
        try:
            if asked.get("method", "POST") != "POST" or asked.get("url") != URL:
                raise ApiError(f"url: only POST {URL} is answered here", param="url", code="invalid_url")
            request = ChatRequest.model_validate(asked["body"])
            if request.stream:
                raise ApiError("stream: a file of requests is not streamed", param="stream")
            prepared = await prepare_chat(self._pipeline, request, params, max_tokens=params.max_tokens)
            replies = await collect(prepared.streams(self._pipeline))
            tokenizer = self._pipeline.model.tokenizer
            body = chat_body(request, prepared, replies, name=self._name, tokenizer=tokenizer)
            tokens = body["usage"]["completion_tokens"]
        except ValidationError as invalid:
            error = validation_error(list(invalid.errors()), ChatRequest)
            status, body = error.status, error.body
        except ApiError as error:
            status, body = error.status, error.body
        except HerdError as error:
            status, body = 400, ApiError(str(error)).body
        response = {"status_code": status, "request_id": f"req_{key}", "body": body}
        return {
            "id": f"batch_req_{key}",
            "custom_id": asked.get("custom_id"),
            "response": response,
            "error": None,
        }, tokens

    def _request(self, asked: dict[str, Any], params: SamplingParams) -> ReplyRequest:
        if "text" in asked:
            prompt = self._pipeline.model.prompt_of_text(_text(asked["text"], "text"))
            return self._pipeline.fit(ReplyRequest(prompt=prompt, params=params))
        messages = asked.get("messages")
        if "prompt" in asked:
            images = asked.get("images", [])
            if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
                raise HerdError("images is no list of paths")
            parts = [{"type": "image", "image": path} for path in images]
            content = [*parts, {"type": "text", "text": _text(asked["prompt"], "prompt")}]
            messages = [{"role": "user", "content": content}]
        if not isinstance(messages, list) or not messages:
            raise HerdError(f"messages is {short(messages)}: it must be a list of messages, one at least")
        try:
            conversation = Conversation(messages, folder=self._folder)
            return self._pipeline.fit(self._pipeline.request(conversation, params))
        except (AttributeError, KeyError, TypeError) as error:
            raise HerdError(f"not a conversation that can be read ({type(error).__name__}: {error})") from None


def _extra(asked: Any) -> dict[str, Any]:
    """The fields of a line that its answer is given too. Raises HerdError where the line is none of ours."""
    if not isinstance(asked, dict) or sum(form in asked for form in FORMS) != 1:
        raise HerdError("not an object with one of prompt, messages and text")
    known = ["prompt", "images"] if "prompt" in asked else ["messages"] if "messages" in asked else ["text"]
    extra = {name: value for name, value in asked.items() if name not in known}
    for name in extra:
        if name in OWN or name == "images":
            reason = "is only for prompt" if name == "images" else "is the answer's own: give yours another name"
            raise HerdError(f"the field {name!r} {reason}")
        if near := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            raise HerdError(f"unknown field {name!r}, did you mean {near[0]!r}?")
    return extra


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise HerdError(f"{name} is {short(value)}: it must be a text")
    return checked_text(value, name)
