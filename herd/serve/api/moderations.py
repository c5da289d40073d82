"""OpenAI's moderations: the verdict of the server's guard.

The guard judges messages as a user would say them, and gives one probability of a message and the categories that it
violates. OpenAI's categories are those of the guard that come nearest (`NEAREST`); the guard's own codes are there too.
"""

import asyncio
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Discriminator, Field, Tag

from herd.data.media.image import read_picture
from herd.errors import HerdError
from herd.guard.model_guard import Verdict
from herd.guard.stream import GuardGate
from herd.serve.message_schema import ImagePart, Text, TextPart, kind_of
from herd.serve.messages import data_url
from herd.serve.refusal import ApiError, Object
from herd.serve.service import Service

MAX_INPUTS = 128
NEAREST = {
    "harassment": (),
    "harassment/threatening": (),
    "hate": ("S10",),
    "hate/threatening": (),
    "illicit": ("S2",),
    "illicit/violent": ("S9",),
    "self-harm": ("S11",),
    "self-harm/instructions": (),
    "self-harm/intent": (),
    "sexual": ("S12", "S3"),
    "sexual/minors": ("S4",),
    "violence": ("S1",),
    "violence/graphic": (),
}
"""OpenAI's categories and the guard's. Of those without any the guard says nothing."""


def _part_kind(value: Any) -> str:
    return "<image_url>" if isinstance(value, dict) and value.get("type") == "image_url" else "<text>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")], Discriminator(_part_kind)
]


def _input_kind(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "<parts>"
    return kind_of(value)


class ModerationRequest(Object):
    model: str | None = None
    """Whatever it is, the server's guard judges."""
    input: Annotated[
        Annotated[Text, Tag("<text>")]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS), Tag("<list>")]
        | Annotated[list[Part], Field(min_length=1, max_length=MAX_INPUTS), Tag("<parts>")],
        Discriminator(_input_kind),
    ]


def routes(service: Service) -> APIRouter:
    """The route of moderations."""
    router = APIRouter(tags=["moderations"])

    @router.post("/v1/moderations")
    async def moderations(body: ModerationRequest, request: Request) -> dict[str, Any]:
        gate = service.models.gate
        if not isinstance(gate, GuardGate) or (guard := gate.guard) is None:
            message = "this server has no guard: start it with --guard FOLDER"
            raise ApiError(message, status=404, code="no_guard")
        codes = guard.policy.codes
        try:
            contents = await asyncio.to_thread(_contents, body)
            asked = [[{"role": "user", "content": content}] for content in contents]
            verdicts = await asyncio.to_thread(gate.limit.run, lambda: guard.judge_all(asked))
        except HerdError as error:
            raise ApiError(f"input: {error}", param="input") from None
        results = [_result(verdict, codes, content) for verdict, content in zip(verdicts, contents, strict=True)]
        return {"id": f"modr-{uuid.uuid4().hex}", "model": service.guard_name, "results": results}

    return router


def _contents(body: ModerationRequest) -> list[str | list[dict[str, Any]]]:
    """What is judged: each text by itself, parts as one message."""
    if isinstance(body.input, str):
        return [body.input]
    texts = [one for one in body.input if isinstance(one, str)]
    if texts:
        return list(texts)
    parts: list[dict[str, Any]] = []
    for part in body.input:
        if isinstance(part, TextPart):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, ImagePart):
            parts.append({"type": "image", "image": read_picture(data_url(part.image_url.url))})
    return [parts]


def _result(verdict: Verdict, codes: tuple[str, ...], content: str | list[dict[str, Any]]) -> dict[str, Any]:
    violated = set(verdict.categories)
    named = {**NEAREST, **{code: (code,) for code in codes}}
    flags = {name: bool(violated & set(of)) for name, of in named.items()}
    has_picture = not isinstance(content, str) and any(part["type"] == "image" for part in content)
    kinds = ["text", "image"] if has_picture else ["text"]
    return {
        "flagged": verdict.unsafe,
        "categories": flags,
        # The guard has one probability, of the whole.
        "category_scores": {name: verdict.score if flag else 0.0 for name, flag in flags.items()},
        "category_applied_input_types": {name: kinds if of else [] for name, of in named.items()},
        "score": verdict.score,
        "notes": list(verdict.notes),
    }
