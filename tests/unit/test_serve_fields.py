"""Every type, field and value of a request that OpenAI's client has: honoured, ignored or refused by name."""

import collections.abc
import re
import types
from typing import Any, Literal, Required, Union, get_args, get_origin, get_type_hints

import pytest
from fastapi.exceptions import RequestValidationError
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import ValidationError
from test_serve_schema import CALL, TOOL, parse
from typing_extensions import is_typeddict

from herd.serve import message_schema, schema
from herd.serve.messages import read_conversation
from herd.serve.refusal import ApiError, Object, validation_error
from herd.serve.schema import ChatRequest

OWN = {"top_k", "min_p", "repetition_penalty", "best_of", "cache_salt", "regex", "grammar"}
"""What other servers understand too, and OpenAI does not."""
OF_CLIENTS = {"cache_control", "reasoning", "reasoning_content", "index"}
"""What clients of other services send in messages."""
OURS = {
    "CompletionCreateParamsNonStreaming": ChatRequest,
    "ChatCompletionDeveloperMessageParam": message_schema.Message,
    "ChatCompletionSystemMessageParam": message_schema.Message,
    "ChatCompletionUserMessageParam": message_schema.Message,
    "ChatCompletionAssistantMessageParam": message_schema.Message,
    "ChatCompletionToolMessageParam": message_schema.Message,
    "ChatCompletionContentPartTextParam": message_schema.TextPart,
    "ChatCompletionContentPartImageParam": message_schema.ImagePart,
    "ChatCompletionContentPartRefusalParam": message_schema.RefusalPart,
    "ImageURL": message_schema.ImageUrl,
    "ChatCompletionMessageFunctionToolCallParam": message_schema.ToolCall,
    "chat_completion_message_function_tool_call_param.Function": message_schema.CalledFunction,
    "ChatCompletionFunctionToolParam": schema.Tool,
    "FunctionDefinition": schema.Function,
    "ChatCompletionNamedToolChoiceParam": schema.NamedTool,
    "chat_completion_named_tool_choice_param.Function": schema.NamedFunction,
    "ChatCompletionStreamOptionsParam": schema.StreamOptions,
    "ResponseFormatText": schema.TextFormat,
    "ResponseFormatJSONObject": schema.TextFormat,
    "ResponseFormatJSONSchema": schema.JsonSchemaFormat,
    "JSONSchema": schema.AskedSchema,
}
"""OpenAI's types, and what we make of them."""
WHOLLY_REFUSED = {
    *("ChatCompletionContentPartInputAudioParam", "File", "ChatCompletionFunctionMessageParam"),
    *("ChatCompletionMessageCustomToolCallParam", "ChatCompletionCustomToolParam"),
    *("ChatCompletionNamedToolChoiceCustomParam", "ChatCompletionAllowedToolChoiceParam"),
}


def name_of(kind: type) -> str:
    short = f"{kind.__module__.rsplit('.', 1)[1]}.{kind.__name__}"
    return short if short in OURS else kind.__name__


def kinds_of_openai() -> dict[str, type]:
    """Every object that a request may hold, below those that are refused or ignored as a whole."""
    found: dict[str, type] = {}

    def walk(hint: Any) -> None:
        if not is_typeddict(hint):
            for inner in get_args(hint):
                walk(inner)
        elif name_of(hint) not in found:
            found[name_of(hint)] = hint
            ours = OURS.get(name_of(hint))
            for name, inner in get_type_hints(hint).items():
                if ours and name not in {*ours.ignored, *ours.unsupported}:
                    walk(inner)

    walk(CompletionCreateParamsNonStreaming)
    return found


def known(ours: type[Object]) -> set[str]:
    fields = {field.alias or name for name, field in ours.model_fields.items()}
    return {*fields, *ours.ignored, *ours.unsupported}


def test_every_object_and_field_of_openai_is_honoured_ignored_or_refused_and_no_other():
    kinds = kinds_of_openai()
    assert set(kinds) == {*OURS, *WHOLLY_REFUSED}
    theirs: dict[type, set[str]] = {}
    for name, ours in OURS.items():
        fields = set(get_type_hints(kinds[name]))
        assert not fields - known(ours), name
        theirs.setdefault(ours, set()).update(fields)
    theirs[message_schema.Message] |= set(ChatCompletionMessage.model_fields)  # an answer is sent back
    for ours, fields in theirs.items():
        assert fields <= known(ours) and not known(ours) - fields - OWN - OF_CLIENTS, ours


def samples(hint: Any) -> list[Any]:
    """A value of each kind that a type of OpenAI's client allows."""
    origin, inner = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        fields = {name: samples(one) for name, one in get_type_hints(hint).items()}
        extras = get_type_hints(hint, include_extras=True)
        least = {name: fields[name][0] for name, one in extras.items() if get_origin(one) is Required}
        more = [{**least, name: value} for name, some in fields.items() for value in some]
        return [least, *more]
    if origin is Literal:
        return list(inner)
    if origin in {Union, types.UnionType}:
        return [value for one in inner if one is not type(None) for value in samples(one)] + [None] * (
            type(None) in inner
        )
    if origin in {list, collections.abc.Iterable, collections.abc.Sequence}:
        return [[value] for value in samples(inner[0])]
    if origin is dict:
        return [{"5": samples(inner[1])[0]}]
    return {str: ["f"], bool: [True, False], int: [1], float: [1.0], object: [{}]}[hint]


SAMPLES = [
    (name, value)
    for name, hint in get_type_hints(CompletionCreateParamsNonStreaming).items()
    if name not in {"messages", "model"}
    for value in samples(hint)
]


def test_every_value_that_openais_types_allow_is_accepted_or_refused_with_its_field():
    """A field that is taken with some value is no longer refused with another unless it is named here."""
    refused_fields: dict[str, set[str]] = {}
    for name, value in SAMPLES:
        tools = {"tools": [TOOL]} if name == "tool_choice" else {"stream": True} if name == "stream_options" else {}
        try:
            read_conversation(parse(**tools, **{name: value}))
        except ApiError as error:
            refused_fields.setdefault(name, set()).add(error.param or "")
        except ValidationError as error:
            reported = validation_error(RequestValidationError(error.errors()).errors(), ChatRequest)
            refused_fields.setdefault(name, set()).add(reported.param or "")
    assert refused_fields == {
        **{name: {name} for name in ChatRequest.unsupported},
        "tools": {"tools[0].type"},  # custom tools
        "tool_choice": {"tool_choice.type"},  # of custom and of allowed tools
        "stream_options": {"stream_options.include_obfuscation"},
        "top_logprobs": {"top_logprobs"},  # without logprobs
    }


@pytest.mark.parametrize("kind", [name for name in OURS if name.endswith("MessageParam")])
def test_every_message_that_openais_types_allow_is_accepted_or_refused_with_its_field(kind):
    refused_at = set()
    for value in samples(kinds_of_openai()[kind]):
        said = [value, {"role": "tool", "content": "x", "tool_call_id": "f"}] if value.get("tool_calls") else [value]
        if value["role"] == "tool":
            said = [{"role": "assistant", "tool_calls": [{**CALL, "id": "f"}]}, value]
        try:
            parse(messages=said)
        except ValidationError as error:
            reported = validation_error(RequestValidationError(error.errors()).errors(), ChatRequest)
            refused_at.add(re.sub(r"\[\d\]", "", reported.param or "").removeprefix("messages."))
    allowed = {
        "ChatCompletionUserMessageParam": {"content"},  # audio and files
        "ChatCompletionAssistantMessageParam": {"audio", "function_call", "tool_calls.type"},
    }
    assert refused_at == allowed.get(kind, set())
