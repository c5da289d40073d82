"""What the server understands of OpenAI's chat completions, and the shapes in which it answers.

Every field of a request is honoured, refused by name, or one of `IGNORED`, which could not change the answer: nothing
is dropped in silence. Source: the types of OpenAI's Python client 3.x. `top_k`, `min_p`, `repetition_penalty`,
`best_of`, `cache_salt`, `regex` and `grammar` are ours. Left out: audio.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from herd.core.errors import unknown
from herd.engine.sampler import MAX_BIASES, MAX_TOP_LOGPROBS, SamplingParams

MAX_CHOICES = 16
"""Most answers to one request."""

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
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
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

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.headers = message, status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        kind = "requests" if self.status == 429 else "invalid_request_error" if self.status < 500 else "server_error"
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


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


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
    strict: bool | None = None


class Tool(_Object):
    type: Literal["function"]
    function: Function


class StreamOptions(_Object):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class NamedFunction(_Object):
    name: ToolName


class NamedTool(_Object):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[NamedTool, Tag("<list>")],
    Discriminator(_kind),
]


class TextFormat(_Object):
    type: Literal["text", "json_object"]


class AskedSchema(_Object):
    model_config = ConfigDict(populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None
    """The schema holds in any case."""


class JsonSchemaFormat(_Object):
    type: Literal["json_schema"]
    json_schema: AskedSchema


def _format_kind(value: Any) -> str:
    is_schema = isinstance(value, dict) and value.get("type") == "json_schema"
    return "<json_schema>" if is_schema else "<text>"


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")] | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    Discriminator(_format_kind),
]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class ChatRequest(_Object):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """So many answers are made, and the `n` that the model finds likeliest, token for token, are given."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    regex: Annotated[str, Field(min_length=1)] | None = None
    """The whole answer matches this expression."""
    grammar: Annotated[str, Field(min_length=1)] | None = None
    """The answer is of this Lark grammar."""
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Only requests of one salt share what the engine has computed; vLLM's field."""

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
        return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in self.tools or ()]

    @property
    def called_name(self) -> str | None:
        """The one tool that must be called."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or self.called_name is not None

    @property
    def may_call_several(self) -> bool:
        """A call that must be made is one, or a model that finds no end would go on to its limit."""
        return bool(self.parallel_tool_calls) if self.must_call else self.parallel_tool_calls is not False

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_drawn(self) -> int:
        """Answers that are made."""
        return self.best_of or self.num_choices

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """How answers are drawn, but for their length and form; what is not said is as in `defaults`."""
        said = {
            name: value
            for name in (
                *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
                *("frequency_penalty", "presence_penalty", "seed"),
            )
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(
            defaults,
            **said,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            stop=tuple(self.stops),
            # The best are chosen by their log-probabilities.
            logprobs=self.top_logprobs or 0 if self.logprobs or self.num_drawn > self.num_choices else None,
        )

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
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError("top_logprobs is only for logprobs=true", param="top_logprobs")
    if request.num_drawn < request.num_choices:
        raise ApiError(f"best_of={request.best_of} is less than n={request.n}", param="best_of")
    if request.stream and request.num_drawn > request.num_choices:
        raise ApiError("best_of: the best are known at the end only, so that they cannot be streamed", param="best_of")
    forms = [name for name in ("regex", "grammar", "response_format") if getattr(request, name) is not None]
    if len(forms) > 1:
        raise ApiError(f"{forms[0]} and {forms[1]} both give the answer a form: send one", param=forms[0])
    names = [tool["function"]["name"] for tool in request.offered]
    if len(set(names)) < len(names):
        raise ApiError("tools: two tools have one name", param="tools")
    if request.must_call and not names:
        raise ApiError("tool_choice: there are no tools to call", param="tool_choice")
    if request.called_name and request.called_name not in names:
        raise ApiError(f"tool_choice: {unknown('tool', request.called_name, names)}", param="tool_choice")
    return request


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
