"""What the server understands of OpenAI's Responses API, and how it becomes a chat.

Source: the types of OpenAI's Python client 3.x. Tools are functions; pictures are `data:` URLs. Refused by name:
background work, stored conversations and prompts, files, built-in tools. Reasoning items are accepted and not repeated.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError

from herd.engine.sampler import MAX_TOP_LOGPROBS
from herd.serve.message_schema import Text, ToolName, kind_of
from herd.serve.refusal import ApiError, Object, validation_error
from herd.serve.schema import MAX_TOOLS, ChatRequest

LOGPROBS = "message.output_text.logprobs"


class InputText(Object):
    ignored = frozenset({"prompt_cache_breakpoint"})

    type: Literal["input_text"]
    text: Text


class OutputText(Object):
    ignored = frozenset({"annotations", "logprobs"})

    type: Literal["output_text"]
    text: Text


class OutputRefusal(Object):
    type: Literal["refusal"]
    refusal: Text


class InputImage(Object):
    ignored = frozenset({"prompt_cache_breakpoint"})
    unsupported: ClassVar = {"file_id": ()}

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


def _tag(value: Any) -> str | None:
    # Of an object too: pydantic asks again when it writes one.
    return f"<{value.get('type') if isinstance(value, dict) else getattr(value, 'type', None)}>"


Part = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[OutputText, Tag("<output_text>")]
    | Annotated[OutputRefusal, Tag("<refusal>")]
    | Annotated[InputImage, Tag("<input_image>")],
    Discriminator(
        _tag,
        custom_error_type="part_type",
        custom_error_message="a part is an object of type 'input_text', 'input_image', 'output_text' or 'refusal'",
    ),
]
Content = Annotated[Annotated[Text, Tag("<text>")] | Annotated[list[Part], Tag("<list>")], Discriminator(kind_of)]


class InputMessage(Object):
    ignored = frozenset({"id", "status", "phase"})

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class FunctionCall(Object):
    ignored = frozenset({"id", "status", "caller"})
    unsupported: ClassVar = {"namespace": (), "async": (False,)}

    type: Literal["function_call"]
    call_id: str
    name: ToolName
    arguments: Text


class FunctionOutput(Object):
    ignored = frozenset({"id", "status", "caller", "name"})
    unsupported: ClassVar = {"namespace": ()}

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningItem(Object):
    model_config = ConfigDict(extra="ignore")

    type: Literal["reasoning"]


def _item_kind(value: Any) -> str | None:
    return f"<{value.get('type', 'message')}>" if isinstance(value, dict) else None


Item = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionOutput, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(
        _item_kind,
        custom_error_type="item_type",
        custom_error_message="an item is an object of type 'message', 'function_call', 'function_call_output' or "
        "'reasoning'",
    ),
]


class ResponseTool(Object):
    ignored = frozenset({"output_schema"})
    unsupported: ClassVar = {"allowed_callers": (["direct"],), "defer_loading": (False,), "async": (False,)}

    type: Literal["function"]
    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Object):
    type: Literal["function"]
    name: ToolName


class PlainFormat(Object):
    type: Literal["text", "json_object"]


class SchemaFormat(Object):
    model_config = ConfigDict(populate_by_name=True)
    ignored = frozenset({"description"})

    type: Literal["json_schema"]
    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextConfig(Object):
    unsupported: ClassVar = {"verbosity": ("medium",)}

    format: (
        Annotated[
            Annotated[PlainFormat, Tag("<text>")]
            | Annotated[PlainFormat, Tag("<json_object>")]
            | Annotated[SchemaFormat, Tag("<json_schema>")],
            Discriminator(_tag),
        ]
        | None
    ) = None


class StreamOptions(Object):
    include_obfuscation: Literal[False] = False


class ResponsesRequest(Object):
    """The body of POST /v1/responses."""

    ignored = frozenset(
        {
            *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
            *("safety_identifier", "stream_options", "user"),
        }
    )
    unsupported: ClassVar = {
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "max_tool_calls": (),
        "moderation": (),
        "prompt": (),
        "reasoning": ({}, {"effort": "none"}, {"effort": None}),
        "service_tier": ("auto", "default"),
        "truncation": ("disabled",),
    }

    model: str
    input: Annotated[Annotated[Text, Tag("<text>")] | Annotated[list[Item], Tag("<list>")], Discriminator(kind_of)]
    instructions: Text | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[NamedFunction, Tag("<list>")],
            Discriminator(kind_of),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None

    @property
    def with_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    @property
    def items(self) -> list[dict[str, Any]]:
        """The input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return [item.model_dump(exclude_none=True) for item in self.input if not isinstance(item, ReasoningItem)]


def chat_of(request: ResponsesRequest, history: Sequence[dict[str, Any]]) -> ChatRequest:
    """The chat that is asked for, behind the items of the responses before it. Raises ApiError."""
    body: dict[str, Any] = {"model": request.model, "messages": []}
    if request.instructions:
        body["messages"].append({"role": "developer", "content": request.instructions})
    for item in [*history, *request.items]:
        _add(body["messages"], item)
    if not body["messages"]:
        raise ApiError("input: there is no message", param="input")
    for name in ("temperature", "top_p", "parallel_tool_calls", "cache_salt"):
        if (value := getattr(request, name)) is not None:
            body[name] = value
    if request.with_logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if request.max_output_tokens:
        body["max_completion_tokens"] = request.max_output_tokens
    if request.tools:
        functions = [tool.model_dump(exclude_none=True, exclude={"type"}) for tool in request.tools]
        body["tools"] = [{"type": "function", "function": one} for one in functions]
    match request.tool_choice:
        case NamedFunction(name=name):
            body["tool_choice"] = {"type": "function", "function": {"name": name}}
        case str() as choice:
            body["tool_choice"] = choice
    match request.text.format if request.text else None:
        case SchemaFormat() as asked:
            schema = {"name": asked.name, "schema": asked.schema_, "strict": asked.strict}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        case PlainFormat(type="json_object"):
            body["response_format"] = {"type": "json_object"}
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise validation_error(list(error.errors()), ChatRequest) from None


def _add(messages: list[dict[str, Any]], item: dict[str, Any]) -> None:
    """Append an item: calls belong to the assistant's message before them."""
    if item["type"] == "function_call":
        function = {"name": item["name"], "arguments": item["arguments"]}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append({"id": item["call_id"], "function": function})
    elif item["type"] == "function_call_output":
        output = _content(item["output"])
        messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": output})
    else:
        messages.append({"role": item["role"], "content": _content(item["content"])})


def _content(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [_part(part) for part in content]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "input_image":
        detail = {"detail": part["detail"]} if "detail" in part else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    return part if part["type"] == "refusal" else {"type": "text", "text": part["text"]}
