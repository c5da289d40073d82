"""What the server understands of OpenAI's chat completions, and the shapes in which it answers.

Every field of a request is honoured, refused by name, or one of `IGNORED`, which could not change the answer: nothing
is dropped in silence. Source: the types of OpenAI's Python client 3.x.
Left out: audio, several choices, log probabilities, structured output, and with it tools that must be called.
"""

import base64
import binascii
import json
import re
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from herd.core.errors import HerdError, unknown
from herd.data.calls import Call
from herd.data.chat import call_of
from herd.data.image import read_picture
from herd.data.video import read_video, video_part

MAX_MEDIA_BYTES = 20 * 2**20
"""Most bytes of one picture or video, after base64."""

IGNORED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "store",
        "user",
    }
)
"""Bookkeeping of the hosted service: accepted and without effect."""

# The values that ask for nothing; null always does.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "parallel_tool_calls": (True,),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""OpenAI's fields that this server cannot honour, with the values that ask for nothing."""

UNSUPPORTED_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
}
"""The same for a message: an answer of ours, sent back as the client dumps it, passes."""


class ApiError(Exception):
    """A refusal in OpenAI's shape. `param` is the field at fault, as `messages[0].content`."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _without(fields: Any, unsupported: dict[str, tuple[Any, ...]], ignored: frozenset[str] = frozenset()) -> Any:
    """`fields` less those that ask for nothing; one that asks for something is an error."""
    if not isinstance(fields, dict):
        return fields
    for name, neutral in unsupported.items():
        value = fields.get(name)
        # True == 1 in Python, but `"n": true` is no way to ask for one choice.
        if value is not None and not any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral
        ):
            text = repr(value) if len(repr(value)) <= 40 else repr(value)[:40] + "…"
            raise PydanticCustomError(
                "unsupported", "{name}={text} is not supported by this server", {"name": name, "text": text}
            )
    return {name: value for name, value in fields.items() if name not in unsupported and name not in ignored}


def _incomplete(name: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("incomplete", "{message}", {"name": name, "message": message})


def _encodable(text: str) -> str:
    # JSON can write half of a surrogate pair, which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "not_unicode", "the text is not Unicode at character {at}: half of a surrogate pair", {"at": error.start}
        ) from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class TextPart(_Object):
    type: Literal["text"]
    text: Text


class ImageUrl(_Object):
    url: str
    """`data:image/png;base64,…`; nothing is fetched."""
    detail: Literal["auto", "high"] = "auto"


class ImagePart(_Object):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(_Object):
    url: str
    """`data:video/mp4;base64,…`; nothing is fetched."""


class VideoPart(_Object):
    type: Literal["video_url"]
    video_url: VideoUrl


def _kind(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


def _part_kind(value: Any) -> str | None:
    return f"<{value.get('type')}>" if isinstance(value, dict) else None


# Tags stand in the location of an error; the brackets let `_param` tell them from fields.
Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[VideoPart, Tag("<video_url>")],
    Discriminator(
        _part_kind,
        custom_error_type="part_type",
        custom_error_message="a part is an object of type 'text', 'image_url' or 'video_url'",
    ),
]
Content = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Part], Field(min_length=1), Tag("<list>")], Discriminator(_kind)
]
StopString = Annotated[str, Field(min_length=1)]
Stop = Annotated[
    Annotated[StopString, Tag("<text>")] | Annotated[list[StopString], Field(max_length=4), Tag("<list>")],
    Discriminator(_kind),
]


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_.-]{0,63}$")]


class CalledFunction(_Object):
    name: ToolName
    arguments: Text
    """A JSON object as text."""


class ToolCall(_Object):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(_Object):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, fields: Any) -> Any:
        return _without(fields, UNSUPPORTED_IN_MESSAGE)

    @model_validator(mode="after")
    def _complete(self) -> "Message":
        if self.content is None and not self.tool_calls:
            raise _incomplete("content", "is missing")
        if self.tool_calls and self.role != "assistant":
            raise _incomplete("tool_calls", "is only for the role 'assistant'")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise _incomplete("tool_call_id", "is missing" if self.role == "tool" else "is only for the role 'tool'")
        return self


class Function(_Object):
    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(_Object):
    type: Literal["function"]
    function: Function


class StreamOptions(_Object):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(_Object):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, fields: Any) -> Any:
        return _without(fields, UNSUPPORTED, IGNORED)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_none=True) for tool in self.tools or ()]

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer, under either of its two names."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def checked(request: ChatRequest) -> ChatRequest:
    """`request`, once what its fields say together makes sense; ApiError otherwise."""
    if request.stream_options and not request.stream:
        raise ApiError("stream_options is only for stream=true", param="stream_options")
    if request.max_tokens and request.max_completion_tokens not in {None, request.max_tokens}:
        raise ApiError(
            f"max_tokens={request.max_tokens} and max_completion_tokens={request.max_completion_tokens} "
            "are two names of one limit: send one",
            param="max_tokens",
        )
    return request


def chat_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """The messages as `Model.render` takes them, pictures decoded; ApiError names the part that is at fault.

    The results of calls stand in the order of the calls: the model's format gives them no names.
    """
    messages: list[dict[str, Any]] = []
    waiting: list[str] = []
    results: dict[str, dict[str, Any]] = {}
    for i, message in enumerate(request.messages):
        here = f"messages[{i}]"
        made = _message(message, here)
        if message.tool_call_id is not None:
            if message.tool_call_id not in waiting or message.tool_call_id in results:
                raise ApiError(
                    f"{here}: no call before it waits for the result {message.tool_call_id!r}",
                    param=f"{here}.tool_call_id",
                )
            results[message.tool_call_id] = made
            if len(results) == len(waiting):
                messages += [results[name] for name in waiting]
                waiting, results = [], {}
            continue
        if waiting:
            missing = next(name for name in waiting if name not in results)
            raise ApiError(f"{here}: the call {missing!r} before it has no message with its result", param=here)
        messages.append(made)
        waiting = [call.id for call in message.tool_calls or ()]
        if len(set(waiting)) < len(waiting):
            raise ApiError(f"{here}: two calls have one id", param=f"{here}.tool_calls")
    if waiting:
        missing = next(name for name in waiting if name not in results)
        raise ApiError(f"messages: the call {missing!r} has no message with its result", param="messages")
    return messages


def _message(message: Message, here: str) -> dict[str, Any]:
    role = {"developer": "system", "tool": "ipython"}.get(message.role, message.role)
    made: dict[str, Any] = {"role": role, "content": message.content or ""}
    if message.tool_calls:
        made["tool_calls"] = [call.model_dump() for call in message.tool_calls]
        for j, call in enumerate(made["tool_calls"]):
            try:
                call_of(call)
            except HerdError as error:
                param = f"{here}.tool_calls[{j}].function.arguments"
                raise ApiError(f"{param}: {error}", param=param) from None
    if isinstance(message.content, list):
        made["content"] = [_part(part, role, f"{here}.content[{j}]") for j, part in enumerate(message.content)]
    return made


def _part(part: TextPart | ImagePart | VideoPart, role: str, here: str) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if role != "user":
        raise ApiError(f"{here}: a message of role {role!r} cannot hold a picture", param=here)
    try:
        if isinstance(part, VideoPart):
            return video_part(read_video(data_url(part.video_url.url, "video")))
        return {"type": "image", "image": read_picture(data_url(part.image_url.url))}
    except HerdError as error:
        raise ApiError(f"{here}: {error}", param=f"{here}.{part.type}", code="invalid_image") from None


def tool_calls(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls in OpenAI's shape, with new ids."""
    return [
        {
            "id": f"call_{uuid.uuid4().hex}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in calls
    ]


def data_url(url: str, what: str = "picture") -> bytes:
    """The bytes in a base64 `data:` URL. Raises HerdError for anything else: the server fetches nothing."""
    if re.match(r"\s*[a-z][a-z0-9+.-]*://", url, re.IGNORECASE):
        raise HerdError(
            f"{url[:60]!r} would have to be fetched, which this server does not do: send the {what} as a data: URL"
        )
    match = re.match(r"data:[^,]*;base64,", url, re.IGNORECASE)
    if not match:
        raise HerdError(f"{url[:30]!r} is not a base64 data: URL, like 'data:image/png;base64,iVBOR…'")
    encoded = url[match.end() :]
    if len(encoded) > MAX_MEDIA_BYTES * 4 // 3 + 4:
        raise HerdError(f"the {what} has more than {MAX_MEDIA_BYTES // 2**20} MiB: make it smaller")
    try:
        data = base64.b64decode(re.sub(r"\s", "", encoded), validate=True)
    except (binascii.Error, ValueError) as error:
        raise HerdError(f"the {what}'s base64 is broken ({error}): encode it again") from None
    if not data:
        raise HerdError(f"the {what} is empty: the data: URL ends after 'base64,'")
    return data


def validation_error(errors: list[Any]) -> ApiError:
    """The first of pydantic's errors in OpenAI's shape."""
    error = errors[0]
    kind, location = error["type"], [step for step in error["loc"] if step != "body"]
    if kind == "json_invalid":
        where = f"{error['ctx']['error']} (character {location[0]})"
        return ApiError(f"the body is not valid JSON: {where}", code="bad_json")
    param = _param(location)
    if kind in {"unsupported", "incomplete"}:
        # A validator of the whole object does not know which field it stumbled over.
        param = f"{param}.{error['ctx']['name']}" if param else error["ctx"]["name"]
        code = "unsupported_parameter" if kind == "unsupported" else "missing_required_parameter"
        return ApiError(f"{param}: {error['msg']}", param=param, code=code)
    if not param:
        return ApiError("the body must be a JSON object, sent as Content-Type: application/json")
    if kind == "extra_forbidden":
        known = sorted({*ChatRequest.model_fields, *IGNORED}) if param == location[0] else []
        message = str(unknown("field", param, known)) if known else f"unknown field {param!r}"
        return ApiError(message, param=param, code="unknown_parameter")
    if kind == "missing":
        return ApiError(f"{param} is missing", param=param, code="missing_required_parameter")
    given = error["input"]
    got = f", got {given!r}" if isinstance(given, str | int | float) and len(repr(given)) <= 60 else ""
    message = error["msg"][:1].lower() + error["msg"][1:]
    return ApiError(f"{param}: {message}{got}", param=param, code="invalid_value")


def _param(location: list[str | int]) -> str:
    """`messages[0].content` from pydantic's location, without the tags of unions."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("<"):
            path += f".{step}" if path else step
    return path


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens of a request; a picture counts the tokens that stand for it."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
