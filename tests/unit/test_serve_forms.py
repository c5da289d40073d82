"""Calls held to their schemas: what the grammar lets pass is read back as a call, and nothing else is."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_structure import STRUCTURES, TOKENIZER, said

from herd.data.tokens.tool_calls import parse_answer
from herd.engine.structure import Structure
from herd.serve.forms import form_of
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest, check_fields


def tool(name: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, **({"parameters": parameters} if parameters else {}), **more},
    }


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "maxItems": 2},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "unit"],
    "$defs": {"day": {"type": "integer", "minimum": 1, "maximum": 9}},
}
ODD = {
    "properties": {
        "$filter": {"type": "string"},
        "top": {"type": "integer"},
        "first name": {"type": "integer"},
    }
}
TOOLS = [tool("weather", WEATHER), tool("clock")]


def form(**fields: Any) -> Structure | None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": TOOLS, **fields}
    found = form_of(check_fields(ChatRequest.model_validate(body)))
    return found and found[0]


def passes(structure: Structure, text: str) -> bool:
    progress = STRUCTURES.start(structure)
    for token in TOKENIZER.encode(text):
        if not progress.allowed_tokens()[token]:
            # Another cut into tokens may be asked for; letter by letter every text can be said.
            progress = STRUCTURES.start(structure)
            letters = [index for letter in text for index in TOKENIZER.encode(letter)]
            return (
                all(progress.allowed_tokens()[one] and progress.push(one) is None for one in letters)
                and progress.is_accepting
            )
        progress.push(token)
    return progress.is_accepting


def test_without_a_need_nothing_is_held_to_a_form() -> None:
    assert form() is None
    assert form(tool_choice="auto", parallel_tool_calls=True) is None
    assert form(tool_choice="none", parallel_tool_calls=False) is None


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 999))
def test_a_call_that_must_be_made_is_made_and_fits_its_schema(seed: int) -> None:
    structure = form(tool_choice="required")
    assert structure
    _, text, reason = said(structure, seed=seed, wish=6, max_tokens=150)
    if reason == "stop":
        answer = parse_answer(text, ["weather", "clock"])
        assert answer.text == "" and answer.calls
        for call in answer.calls:
            jsonschema.validate(call.arguments, WEATHER if call.name == "weather" else {"maxProperties": 0})


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        (
            {"tool_choice": "required"},
            ['[weather(city="Oslo", days=[1, 2], unit="C")]', "[clock()]", '[weather(city="", unit="F")]'],
            [
                *("hello", "[]", "[other()]", "[clock(), clock()]"),
                *('[weather(city="Oslo")]', '[weather(city="Oslo", days=[0], unit="C")]'),
            ],
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "clock"}}},
            ["[clock()]"],
            ['[weather(city="Oslo", unit="C")]', "hello"],
        ),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["[clock()]"], ["[clock(), clock()]"]),
        ({"tool_choice": "required", "parallel_tool_calls": True}, ["[clock()]", "[clock(), clock()]"], ["[]"]),
        ({"tools": [tool("clock", strict=True)]}, ["[clock()]", "[clock(), clock()]"], []),
        (
            {"tool_choice": "required", "tools": [tool("2fa", ODD)]},
            ['[2fa(**{"$filter": "x"}, top=1, **{"first name": 2})]', '[2fa(**{"$filter": ""})]', "[2fa(top=3)]"],
            ['[2fa($filter="x")]', "[2fa(first name=2)]", '[2fa(**{"$filter": "x")]'],
        ),
        (
            {"tools": [tool("clock", strict=True)]},
            ["[clock()]", "hello", "it is [1] noon", "see (clock())"],
            ["[clock(a=1)]", "I look. [clock(a=1)]", "I look. [clock()]", '{"name": "clock"}'],
        ),
        (
            {"response_format": {"type": "json_object"}},
            ["[clock()]", '{"a": 1}'],
            ["hello", "[1]"],
        ),
        ({"regex": "yes|no"}, ["[clock()]", "yes"], ["maybe"]),
    ],
)
def test_a_form_lets_pass_sound_calls_and_what_else_may_be_said(
    fields: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    structure = form(**fields)
    assert structure
    assert [text for text in right if not passes(structure, text)] == []
    assert [text for text in wrong if passes(structure, text)] == []


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"anyOf": [{}]}, "'anyOf' over all arguments"),
        ({"required": ["a"]}, "'a' is required and is no property"),
    ],
)
def test_parameters_that_no_grammar_can_hold_are_refused_by_name(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ApiError, match=says) as caught:
        form(tools=[tool("f", parameters)], tool_choice="required")
    assert caught.value.param == "tools"


def test_a_form_is_closed_where_it_is_strict_and_refused_where_it_cannot_be() -> None:
    def asked(schema: dict[str, Any], strict: bool) -> dict[str, Any]:
        made = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}
        return {"response_format": made, "tools": None}

    anything = {"type": "object"}
    assert passes(form(**asked(anything, False)), '{"a": 1}')  # type: ignore[arg-type]
    assert not passes(form(**asked(anything, True)), '{"a": 1}')  # type: ignore[arg-type]
    with pytest.raises(ApiError, match="'#' contains itself") as caught:
        form(**asked({"$ref": "#"}, False))
    assert caught.value.param == "response_format"
    endless = {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"$ref": "#/$defs/b"}}}
    with pytest.raises(ApiError, match=r"f: .*contains itself") as caught:
        form(tools=[tool("f", endless)], tool_choice="required")
    assert caught.value.param == "tools"


def test_an_argument_may_refer_to_the_parameters_as_a_whole() -> None:
    node = {"type": "object", "properties": {"value": {"type": "integer"}, "next": {"$ref": "#"}}}
    structure = form(tools=[tool("f", node)], tool_choice="required")
    assert structure
    assert passes(structure, '[f(value=1, next={"value": 2, "next": {}})]')
    assert not passes(structure, '[f(value=1, next={"value": "2"})]')


def test_a_grammar_of_ones_own_leaves_no_room_for_tools() -> None:
    with pytest.raises(ApiError, match="tool_choice='none'"):
        form(grammar="start: /a/")
    assert json.loads(json.dumps(form(grammar="start: /a/", tool_choice="none").source)) == "start: /a/"  # type: ignore[union-attr]
