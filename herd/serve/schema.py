"""What the server understands of OpenAI's chat completions and of its older completions of texts.

Every field of a request is honoured, refused by name, or ignored where it could not change the answer: nothing else is
dropped in silence. Source: the types of OpenAI's Python client 3.x. `top_k`, `min_p`, `repetition_penalty`, `best_of`,
`cache_salt`, `regex` and `grammar` are ours. Left out: audio. The messages are in `message_schema`.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from herd.engine.sampler import MAX_BIASES, MAX_TOP_LOGPROBS, SamplingParams
from herd.errors import unknown
from herd.serve.message_schema import Message, Text, ToolName, kind_of
from herd.serve.refusal import ApiError, Object

MAX_CHOICES = 16
"""Most answers to one prompt."""
MAX_PROMPTS = 128
"""Most texts of one request, each counted as often as it is answered."""
MAX_PROMPT_CHARS = 16 * 2**20
MAX_TOOLS = 128
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[
    Annotated[StopString, Tag("<text>")] | Annotated[list[StopString], Field(max_length=4), Tag("<list>")],
    Discriminator(kind_of),
]


class Function(Object):
    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Object):
    ignored = frozenset({"cache_control"})

    type: Literal["function"]
    function: Function


class StreamOptions(Object):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class NamedFunction(Object):
    name: ToolName


class NamedTool(Object):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[NamedTool, Tag("<list>")],
    Discriminator(kind_of),
]


class TextFormat(Object):
    type: Literal["text", "json_object"]


class AskedSchema(Object):
    model_config = ConfigDict(populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None
    """The schema holds in any case; under strict every object is closed."""


class JsonSchemaFormat(Object):
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


class GenerationRequest(Object):
    """What chats and texts to be continued have in common: the model, the sampling, the stream."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """So many answers are made, and the `n` that the model finds likeliest, token for token, are given."""
    regex: Annotated[str, Field(min_length=1)] | None = None
    """The whole answer matches this expression."""
    grammar: Annotated[str, Field(min_length=1)] | None = None
    """The answer is of this Lark grammar."""
    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Only requests of one salt share what the engine has computed; vLLM's field."""

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_generated(self) -> int:
        """Answers that are made."""
        return self.best_of or self.num_choices

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives whose log-probabilities are asked for; None where not even the token's own is."""
        raise NotImplementedError

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """How answers are sampled, but for their length and form; what the request leaves out is as in `defaults`."""
        given = {
            name: value
            for name in (
                *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
                *("frequency_penalty", "presence_penalty", "seed"),
            )
            if (value := getattr(self, name)) is not None
        }
        chosen = 0 if self.num_generated > self.num_choices else None  # by their log-probabilities
        return dataclasses.replace(
            defaults,
            **given,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            stop=tuple(self.stops) or defaults.stop,
            logprobs=chosen if self.num_logprobs is None else self.num_logprobs,
        )


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    # Bookkeeping of the hosted service, and what would only make it faster.
    ignored = frozenset(
        {
            *("metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
            *("safety_identifier", "store", "user"),
        }
    )
    unsupported: ClassVar = {
        "audio": (),
        "function_call": ("none", "auto"),  # of `functions`
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "reasoning_effort": ("none",),
        "service_tier": ("auto", "default"),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the prompt lists."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in self.tools or ()]

    @property
    def required_tool(self) -> str | None:
        """The one tool that must be called."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or self.required_tool is not None

    @property
    def may_call_several(self) -> bool:
        """A call that must be made is one, or a model that finds no end would go on to its limit."""
        return bool(self.parallel_tool_calls) if self.must_call else self.parallel_tool_calls is not False

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer, under either of its two names."""
        return self.max_completion_tokens or self.max_tokens


TextPrompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
TokenPrompt = Annotated[list[Token], Field(min_length=1)]


def _prompt_kind(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else None
    kinds = {str: "<texts>", int: "<tokens>", list: "<token arrays>"}
    return "<text>" if isinstance(value, str) else kinds.get(type(first), "<texts>")


Prompts = Annotated[
    Annotated[TextPrompt, Tag("<text>")]
    | Annotated[list[TextPrompt], Field(min_length=1, max_length=MAX_PROMPTS), Tag("<texts>")]
    | Annotated[TokenPrompt, Tag("<tokens>")]
    | Annotated[list[TokenPrompt], Field(min_length=1, max_length=MAX_PROMPTS), Tag("<token arrays>")],
    Discriminator(_prompt_kind),
]
"""A text or several, as they are or as token ids."""


def each_prompt(given: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The texts and token arrays, one by one."""
    if isinstance(given, list) and not isinstance(given[0], int):
        return list(given)
    return [given]


class TextRequest(GenerationRequest):
    """The body of POST /v1/completions: texts to be continued as they are."""

    ignored = frozenset({"user"})
    unsupported: ClassVar = {"suffix": ("",)}

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0)] = 16
    echo: bool | None = None
    """Whether the prompt is repeated before what follows, with its log-probabilities if they are asked for."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        return each_prompt(self.prompt)

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        scored = bool(self.echo) and self.logprobs is not None
        return dataclasses.replace(super().sampling(defaults), prompt_logprobs=scored)


def _check_common(request: GenerationRequest) -> None:
    if request.stream_options and not request.stream:
        raise ApiError("stream_options is only for stream=true", param="stream_options")
    if request.num_generated < request.num_choices:
        raise ApiError(f"best_of={request.best_of} is less than n={request.n}", param="best_of")
    if request.stream and request.num_generated > request.num_choices:
        raise ApiError("best_of: the best are known at the end only, so that they cannot be streamed", param="best_of")


def check_text_fields(request: TextRequest) -> TextRequest:
    """`request`, if its fields are consistent; ApiError otherwise."""
    _check_common(request)
    if not request.max_tokens and not request.echo:
        raise ApiError("max_tokens=0 is only for echo=true", param="max_tokens")
    if request.regex and request.grammar:
        raise ApiError("regex and grammar both give the answer a form: send one", param="regex")
    if (count := len(request.prompts) * request.num_generated) > MAX_PROMPTS:
        raise ApiError(
            f"{len(request.prompts)} prompts with {request.num_generated} answers each are {count}: {MAX_PROMPTS} are "
            "the most",
            param="prompt",
        )
    return request


def check_fields(request: ChatRequest) -> ChatRequest:
    """`request`, if its fields are consistent; ApiError otherwise."""
    _check_common(request)
    if request.max_tokens and request.max_completion_tokens not in {None, request.max_tokens}:
        raise ApiError(
            f"max_tokens={request.max_tokens} and max_completion_tokens={request.max_completion_tokens} "
            "are two names of one limit: send one",
            param="max_tokens",
        )
    if request.top_logprobs and not request.logprobs:
        raise ApiError("top_logprobs is only for logprobs=true", param="top_logprobs")
    forms = [name for name in ("regex", "grammar", "response_format") if getattr(request, name) is not None]
    if len(forms) > 1:
        raise ApiError(f"{forms[0]} and {forms[1]} both give the answer a form: send one", param=forms[0])
    names = [tool["function"]["name"] for tool in request.offered_tools]
    if len(set(names)) < len(names):
        raise ApiError("tools: two tools have one name", param="tools")
    if request.must_call and not names:
        raise ApiError("tool_choice: there are no tools to call", param="tool_choice")
    if request.required_tool and request.required_tool not in names:
        raise ApiError(f"tool_choice: {unknown('tool', request.required_tool, names)}", param="tool_choice")
    return request
