"""herd.rl.calculator: a tool over several turns, evaluated safely, whatever the model writes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.data.tokens.tool_calls import parse_answer, write_calls
from herd.errors import HerdError
from herd.rl.calculator import NAME, CalculatorEnvironment, calculate, written
from herd.rl.environment import open_environment

HERE = CalculatorEnvironment(seed=1)
ANY = st.text(st.characters(exclude_categories=())) | st.text("0123456789.+-*/%() e", max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
)


def call(expression: Any) -> dict[str, Any]:
    arguments = json.dumps({"expression": expression})
    return {"id": "c1", "type": "function", "function": {"name": NAME, "arguments": arguments}}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_the_model_calls_reads_and_says_the_number():
    environment = open_environment("calculator", None, 1)
    messages = environment.prompt("calculate-2", 5)
    expression = messages[0]["content"].removeprefix("What is ").removesuffix("?")
    asked = {"role": "assistant", "content": None, "tool_calls": [call(expression)]}
    reaction = environment.respond(messages, asked)
    [result] = reaction.messages
    right = str(eval(expression))
    assert reaction.reward is None and result == {"role": "tool", "content": right, "tool_call_id": "c1"}
    final = environment.respond([*messages, asked, result], said(f"It is {right}"))
    assert final.reward == 1 and final.parts == {"right": 1, "used": 1, "answered": 1}
    direct = environment.respond(messages, said(right))
    assert direct.reward == 1 and direct.parts["used"] == 0
    for wrong in ("", "no", f"{right}1"):
        assert environment.respond(messages, said(wrong)).reward == 0
    cut = {"role": "assistant", "content": right, "finish_reason": "length"}
    assert environment.respond(messages, cut).reward == 0


def test_calls_without_end_are_ended():
    messages: list[Any] = HERE.prompt("calculate-1", 0)
    for _ in range(3):
        asked = {**said(""), "tool_calls": [call("1 + 1"), call("2 *")]}
        reaction = HERE.respond(messages, asked)
        assert [one["content"] for one in reaction.messages] == ["2", "error: not an expression"]
        messages = [*messages, asked, *reaction.messages]
    assert HERE.respond(messages, asked).reward == 0


@given(st.sampled_from(HERE.cells), st.integers(0, 500))
def test_python_agrees_with_the_calculator(cell: str, index: int):
    expression = HERE.expression(cell, index)
    assert calculate(expression) == eval(expression)
    assert HERE.expression(cell, index) == CalculatorEnvironment(seed=1).expression(cell, index)
    assert expression.count(" ") // 2 == int(cell[-1])


def test_no_expression_is_trained_on_and_held_out():
    held = CalculatorEnvironment(seed=2, heldout=True)
    trained, kept = ({one.expression("calculate-1", i) for i in range(3000)} for one in (HERE, held))
    assert kept and not trained & kept


def outcome(expression: str) -> str:
    """The value, or the error."""
    try:
        return written(calculate(expression))
    except HerdError as error:
        return str(error)


@given(ANY)
def test_any_expression_has_a_value_or_an_error_that_says_why(text: str):
    assert outcome(text)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("1 / 3", "0.333333"), ("2 ** 10", "1024"), ("7 // 2", "3"), ("-7 % 4", "1"), ("0.1 + 0.2", "0.3"),
     ("2 ** -1", "0.5"), ("(" * 90 + "1" + ")" * 90, "1"), (" 10 ** 30 ", "1" + "0" * 30)],
)  # fmt: skip
def test_values_are_exact(expression: str, value: str):
    assert outcome(expression) == value


@pytest.mark.parametrize(
    ("expression", "why"),
    [("10 ** 31", "too large"), ("9 ** 9 ** 9", "at most 100"), ("1 / 0", "division by zero"),
     ("2 ** 0.5", "whole number"), ("__import__('os')", "only numbers"), ("(1).real", "only numbers"),
     ("True + 1", "only numbers"), ("'a' * 9", "only numbers"), ("-" * 30 + "1", "brackets"),
     ("1 +" * 90 + "1", "characters"), ("1e999", "not an expression"), ("x := 1", "not an expression"),
     ("", "not an expression")],
)  # fmt: skip
def test_what_is_no_plain_arithmetic_is_refused(expression: str, why: str):
    assert why in outcome(expression)


@settings(max_examples=40)
@given(ANY, st.lists(JSON, max_size=3), JSON)
def test_any_answer_has_a_reaction(text: str, calls: list[Any], arguments: Any):
    shaped = {"function": {"name": text, "arguments": arguments}}
    for tool_calls in ([*calls, shaped], [call(text)], [call(arguments)] if arguments == arguments else []):
        for messages in ([{"role": "user", "content": "What is 1 + 1?"}], []):
            reaction = HERE.respond(messages, {**said(text), "tool_calls": tool_calls})
            assert (reaction.reward is None) == bool(tool_calls)
            assert len(reaction.messages) == len(tool_calls)


def test_the_call_that_a_model_would_write_is_read():
    [read] = parse_answer('[calculator(expression="3 * (4 + 5)")]', (NAME,)).calls
    assert write_calls([read]) == '[calculator(expression="3 * (4 + 5)")]'
    assert str(calculate(read.arguments["expression"])) == "27"
