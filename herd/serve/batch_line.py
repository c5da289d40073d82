"""A line of a file of prompts, and what its answer's line says beside `number` and `key`.

Two kinds: ours, of which every further field (`custom_id`, `label`, …) is passed on to the answer; and OpenAI's batch
file, `{"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}`, whose answer is OpenAI's too.
The `model` of a body is not asked for: the folder is.
"""

import asyncio
import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from herd.core.errors import HerdError
from herd.core.streams import seed_of
from herd.data.chat import checked_text
from herd.data.image import read_picture
from herd.data.video import read_video, video_part
from herd.engine.engine import Engine
from herd.engine.load import Model, Prompt
from herd.engine.sampler import SamplingParams
from herd.serve.completion import prepared
from herd.serve.refusal import ApiError, validation_error
from herd.serve.reply import all_joined
from herd.serve.schema import FIELDS, ChatRequest
from herd.serve.session import answering, fitted

FORMS = ("prompt", "messages", "text")
OWN = frozenset({"number", "key", "finish_reason", "prompt_tokens", "tokens", "error"})
"""What an answer's line says itself."""
URL = "/v1/chat/completions"


def failed(answer: dict[str, Any]) -> bool:
    """Whether this line tells of an error."""
    return answer.get("error") is not None or answer.get("response", {}).get("status_code", 200) != 200


def is_openai(asked: Any) -> bool:
    """Whether a line is of OpenAI's batch file."""
    return isinstance(asked, dict) and "body" in asked and not asked.keys() & set(FORMS)


class Lines:
    """Answers lines by one engine."""

    def __init__(self, model: Model, engine: Engine, params: SamplingParams, *, folder: Path, name: str) -> None:
        """Paths begin at `folder`; `name` is the model's."""
        self._model, self._engine, self._params, self._folder, self._name = model, engine, params, folder, name

    async def answer(self, line: str, number: int, key: str) -> tuple[dict[str, Any], int]:
        """What the answer's line says, and how many tokens were made."""
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
            prompt = await asyncio.to_thread(self._prompt, asked)
            room = fitted(prompt, params, max_tokens=None, context=self._engine.capacity).max_tokens
            params = dataclasses.replace(params, max_tokens=min(params.max_tokens, room))
            text, tokens, reason = "", 0, None
            async with answering(self._engine, prompt, params) as pieces:
                async for piece in pieces:
                    text, tokens, reason = text + piece.text, tokens + len(piece.token_ids), piece.finish_reason
        except HerdError as error:
            return {**extra, "error": str(error)}, 0
        said = {"text": text, "finish_reason": reason, "prompt_tokens": len(prompt.token_ids), "tokens": tokens}
        return {**extra, **said}, tokens

    async def _openai(self, asked: dict[str, Any], key: str, params: SamplingParams) -> tuple[dict[str, Any], int]:
        status, tokens = 200, 0
        try:
            if asked.get("method", "POST") != "POST" or asked.get("url") != URL:
                raise ApiError(f"url: only POST {URL} is answered here", param="url", code="invalid_url")
            request = ChatRequest.model_validate(asked["body"])
            if request.stream:
                raise ApiError("stream: a file of requests is not streamed", param="stream")
            limit = params.max_tokens
            completion = await prepared(self._model, self._engine, request, params, name=self._name, max_tokens=limit)
            body = completion.body(await all_joined(completion.answers(self._engine)))
            tokens = body["usage"]["completion_tokens"]
        except ValidationError as invalid:
            error = validation_error(list(invalid.errors()), FIELDS)
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

    def _prompt(self, asked: dict[str, Any]) -> Prompt:
        if "text" in asked:
            special = self._model.config.special
            return Prompt(token_ids=[special.bos, *self._model.tokenizer.encode(_text(asked["text"], "text"))])
        messages = asked.get("messages")
        if "prompt" in asked:
            images = asked.get("images", [])
            if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
                raise HerdError("images is no list of paths")
            parts = [{"type": "image", "image": path} for path in images]
            content = [*parts, {"type": "text", "text": _text(asked["prompt"], "prompt")}]
            messages = [{"role": "user", "content": content}]
        if not isinstance(messages, list) or not messages:
            raise HerdError(f"messages is {_short(messages)}: it must be a list of messages, one at least")
        try:
            return self._model.render([self._opened(message, f"messages[{i}]") for i, message in enumerate(messages)])
        except (AttributeError, KeyError, TypeError) as error:
            raise HerdError(f"not a conversation that can be read ({type(error).__name__}: {error})") from None

    def _opened(self, message: Any, here: str) -> dict[str, Any]:
        """The message with its pictures and videos opened."""
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise HerdError(f"{here} is {_short(message)}: it must be an object with role and content")
        content = message.get("content")
        if content is None and message["role"] == "assistant":
            content = ""
        if not isinstance(content, str | list):
            raise HerdError(f"{here}: content is {_short(content)}: it must be a text or a list of parts")

        def opened(part: dict[str, Any]) -> dict[str, Any]:
            match part["type"]:
                case "image":
                    return {"type": "image", "image": read_picture(self._folder / part["image"])}
                case "video":
                    return video_part(read_video(self._folder / part["video"]))
            return part

        return {**message, "content": content if isinstance(content, str) else [opened(part) for part in content]}


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
        raise HerdError(f"{name} is {_short(value)}: it must be a text")
    return checked_text(value, name)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"
