"""What the server understands of Anthropic's Messages API, and how it becomes a chat.

Source: the types of Anthropic's Python client 2.x. Tools are the caller's own; pictures are base64, or addresses of
hosts that the operator has named. Refused by name: the hosted service's tools, documents, thinking, and the beginning
of an answer as the last message. The thinking of earlier turns is accepted and not repeated.
"""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError

from herd.serve.message_schema import Text, ToolName, kind_of, type_tag
from herd.serve.refusal import ApiError, Object, validation_error
from herd.serve.schema import MAX_TOOLS, ChatRequest, StopString


class TextBlock(Object):
    ignored = frozenset({"cache_control", "citations"})

    type: Literal["text"]
    text: Text


class Base64Source(Object):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(Object):
    type: Literal["url"]
    url: str


class ImageBlock(Object):
    ignored = frozenset({"cache_control"})
    unsupported: ClassVar = {"transformations": ()}

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]


class ToolUseBlock(Object):
    ignored = frozenset({"cache_control", "caller"})
    unsupported: ClassVar = {"toolset_name": ()}

    type: Literal["tool_use"]
    id: str
    name: ToolName
    input: dict[str, Any]


ResultPart = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ImageBlock, Tag("<image>")],
    Discriminator(
        type_tag,
        custom_error_type="part_type",
        custom_error_message="the content of a result is of type 'text' or 'image'",
    ),
]


class ToolResultBlock(Object):
    ignored = frozenset({"cache_control", "is_error"})
    unsupported: ClassVar = {"toolset_name": ()}

    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        Annotated[
            Annotated[Text, Tag("<text>")] | Annotated[list[ResultPart], Tag("<list>")],
            Discriminator(kind_of),
        ]
        | None
    ) = None


class ThinkingBlock(Object):
    model_config = ConfigDict(extra="ignore")

    type: Literal["thinking", "redacted_thinking"]


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[ThinkingBlock, Tag("<redacted_thinking>")],
    Discriminator(
        type_tag,
        custom_error_type="part_type",
        custom_error_message="a block is an object of type 'text', 'image', 'tool_use', 'tool_result' or 'thinking'",
    ),
]


class AnthropicMessage(Object):
    role: Literal["user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[Block], Tag("<list>")],
        Discriminator(kind_of),
    ]


class AnthropicTool(Object):
    ignored = frozenset({"cache_control", "eager_input_streaming", "input_examples"})
    unsupported: ClassVar = {"allowed_callers": (["direct"],), "defer_loading": (False,)}

    type: Literal["custom"] | None = None
    name: ToolName
    description: Text | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class AnthropicToolChoice(Object):
    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None


class JsonFormat(Object):
    model_config = ConfigDict(populate_by_name=True)

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Object):
    unsupported: ClassVar = {"effort": ()}

    format: JsonFormat | None = None


class CountRequest(Object):
    """The body of POST /v1/messages/count_tokens."""

    ignored = frozenset({"cache_control", "metadata", "user_profile_id", "workspace_id"})
    unsupported: ClassVar = {
        "context_management": (),
        "mcp_servers": ([],),
        "output_format": (),
        "speed": ("standard",),
        "thinking": ({"type": "disabled"},),
    }

    model: str
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: (
        Annotated[
            Annotated[Text, Tag("<text>")] | Annotated[list[TextBlock], Tag("<list>")],
            Discriminator(kind_of),
        ]
        | None
    ) = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    """The body of POST /v1/messages."""

    unsupported: ClassVar = {
        **CountRequest.unsupported,
        "container": (),
        "diagnostics": (),
        "inference_geo": (),
        "service_tier": ("auto", "standard_only"),
    }

    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: Annotated[list[StopString], Field(max_length=4)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None


def chat_of(request: CountRequest) -> ChatRequest:
    """The chat that is asked for. Raises ApiError."""
    if request.messages[-1].role == "assistant":
        raise ApiError("messages: the last one is the assistant's: to go on from its beginning is not supported")
    body: dict[str, Any] = {"model": request.model, "messages": []}
    if request.system:
        system = request.system
        text = system if isinstance(system, str) else "\n".join(block.text for block in system)
        body["messages"].append({"role": "system", "content": text})
    for message in request.messages:
        body["messages"] += _messages(message)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if choice := request.tool_choice:
        if (choice.type == "tool") != (choice.name is not None):
            raise ApiError("tool_choice: a name is for the type 'tool', which needs one")
        named = {"type": "function", "function": {"name": choice.name}}
        body["tool_choice"] = {"any": "required", "tool": named}.get(choice.type, choice.type)
        if choice.disable_parallel_tool_use is not None:
            body["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if request.output_config and (form := request.output_config.format):
        schema = {"name": "answer", "schema": form.schema_, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(request, MessagesRequest):
        for ours, theirs in (
            *(("temperature", "temperature"), ("top_p", "top_p"), ("top_k", "top_k")),
            *(("stop", "stop_sequences"), ("max_tokens", "max_tokens"), ("cache_salt", "cache_salt")),
        ):
            if (value := getattr(request, theirs)) is not None:
                body[ours] = value
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise validation_error(list(error.errors()), ChatRequest) from None


def _tool(tool: AnthropicTool) -> dict[str, Any]:
    function = {"name": tool.name, "parameters": tool.input_schema, "strict": tool.strict}
    described = {"description": tool.description} if tool.description is not None else {}
    return {"type": "function", "function": function | described}


def _messages(message: AnthropicMessage) -> list[dict[str, Any]]:
    """A message as those of a chat: the results of tools come as messages before what the user says."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    made: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block in message.content:
        match block:
            case TextBlock(text=text):
                parts.append({"type": "text", "text": text})
            case ImageBlock():
                parts.append(_picture(block))
            case ToolUseBlock():
                function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
                calls.append({"id": block.id, "function": function})
            case ToolResultBlock():
                made.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)})
            case _:  # thinking
                pass
    if calls and message.role != "assistant":
        raise ApiError("messages: tool_use is only for the role 'assistant'")
    if made and message.role != "user":
        raise ApiError("messages: tool_result is only for the role 'user'")
    if parts or calls or not made:
        extra = {"tool_calls": calls} if calls else {}
        made.append({"role": message.role, "content": parts or ("" if message.role == "user" else None), **extra})
    return made


def _result(block: ToolResultBlock) -> str | list[dict[str, Any]]:
    if block.content is None or isinstance(block.content, str):
        return block.content or ""
    return [
        _picture(part) if isinstance(part, ImageBlock) else {"type": "text", "text": part.text}
        for part in block.content
    ]


def _picture(block: ImageBlock) -> dict[str, Any]:
    source = block.source
    url = source.url if isinstance(source, UrlSource) else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}
