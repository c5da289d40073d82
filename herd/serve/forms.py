"""The form that a request asks of its answer: its response_format, or what holds calls of tools to their schemas.

A call that must be made, or made right, is written in the model's own style, `[name(a=1, b="x")]`, by a grammar: the
arguments in the order of the schema's properties, each a JSON value of its schema, which the reader of calls takes as
it takes Python's literals.
Left out: arguments beside the named properties, and words on the arguments as a whole (`anyOf`, `minProperties`, …).
"""

import json
from collections.abc import Sequence
from typing import Any

from herd.data.tokens.tool_calls import argument_affixes
from herd.engine.json_schema import prepare
from herd.engine.structure import ANY_OBJECT, Structure
from herd.errors import HerdError
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest, Function, JsonSchemaFormat


def form_of(request: ChatRequest) -> tuple[Structure, str] | None:
    """The form of the answer and the field that asks for it; None where the answer is free."""
    given = _answer_form(request)
    offered = [tool.function for tool in request.tools or ()] if request.tool_choice != "none" else []
    bound = request.must_call or request.parallel_tool_calls is False or any(tool.strict for tool in offered)
    if not offered or not (bound or given):
        return given
    if given and given[0].kind == "grammar":
        raise ApiError(
            "grammar: a grammar of your own leaves no room for tools: send tool_choice='none'", param="grammar"
        )
    if name := request.required_tool:
        offered = [tool for tool in offered if tool.name == name]
    words = None if request.must_call else given[0] if given else WORDS
    try:
        source = calls_grammar(offered, words=words, several=request.may_call_several)
    except HerdError as error:
        raise ApiError(str(error), param="tools") from None
    return Structure(kind="grammar", source=source), "tools"


def _answer_form(request: ChatRequest) -> tuple[Structure, str] | None:
    if request.regex is not None:
        return Structure(kind="regex", source=request.regex), "regex"
    if request.grammar is not None:
        return Structure(kind="grammar", source=request.grammar), "grammar"
    match request.response_format:
        case JsonSchemaFormat(json_schema=asked):
            try:
                structure = Structure.from_schema(asked.schema_ or {}, strict=bool(asked.strict))
            except HerdError as error:
                raise ApiError(f"response_format: {error}", param="response_format") from None
            return structure, "response_format"
        case None:
            return None
        case other:
            return (ANY_OBJECT, "response_format") if other.type == "json_object" else None


WORDS = Structure(kind="regex", source=r"[^\[{<](?s:.*)")
"""Words in which no call can begin: neither at their start nor further on."""


def calls_grammar(tools: Sequence[Function], *, words: Structure | None, several: bool) -> str:
    """Lark: a list of calls of these tools; or `words`, unless None."""
    rules = [f"call: {' | '.join(f'tool{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        rules += _call(f"tool{i}", tool)
    rules.append('calls: "[" call' + (' (", " call)*' if several else "") + ' "]"')
    match words:
        case None:
            start = "calls"
        case Structure(kind="json_schema", source=source):
            start = f"calls | %json {source}"
        case _:
            heads = "|".join(tool.name.replace(".", r"\.") for tool in tools)
            later = rf"/(?s:.*)(\[\s*({heads})\s*\(|\{{\s*\"(type|name)\")(?s:.*)/"
            start = "calls | WORDS"
            rules.append(f"WORDS: /{words.source}/" + (f" & ~{later}" if words is WORDS else ""))
    return "\n".join([f"start: {start}", *rules])


def _call(rule: str, tool: Function) -> list[str]:
    """Rules for one call: a rule for each place in the order of arguments, once for the first that is written, once
    for those that follow a comma."""
    parameters = tool.parameters or {}
    fields: dict[str, Any] = parameters.get("properties") or {}
    needed = parameters.get("required") or []
    beyond = sorted(parameters.keys() & {"anyOf", "oneOf", "allOf", "not", "if", "$ref", "minProperties"})
    if beyond:
        raise HerdError(f"{tool.name}: {beyond[0]!r} over all arguments is not supported: set it for each property")
    if missing := [name for name in needed if name not in fields]:
        raise HerdError(f"{tool.name}: {missing[0]!r} is required and is no property")
    try:
        prepare(parameters, strict=bool(tool.strict))
    except HerdError as error:
        raise HerdError(f"{tool.name}: {error}") from None
    rules = [f'{rule}: "{tool.name}(" {rule}_first0 ")"']
    for i, (name, schema) in enumerate(fields.items()):
        before, behind = argument_affixes(name)
        for state, comma in (("first", ""), ("more", ", ")):
            skip = "" if name in needed else f" | {rule}_{state}{i + 1}"
            written, end = json.dumps(comma + before, ensure_ascii=False), f' "{behind}"' if behind else ""
            rules.append(f"{rule}_{state}{i}: {written} {rule}_value{i}{end} {rule}_more{i + 1}{skip}")
        value = json.dumps(prepare(schema, root=parameters, strict=bool(tool.strict)))
        rules.append(f"{rule}_value{i}: %json {value}")
    return [*rules, f'{rule}_first{len(fields)}: ""', f'{rule}_more{len(fields)}: ""']
