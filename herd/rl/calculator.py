"""A calculator as a tool, over several turns: the model calls it, reads its results, and says the number.

The calculator knows numbers, + - * / // % **, brackets and signs; nothing else is evaluated, and what would be too
large is an error that the model reads. Only the final answer is scored; a call in the last turn is none.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import count
from typing import Any

from herd.core.streams import stream
from herd.data.tasks.prompts import last_number
from herd.data.tasks.task import Messages, asked, of_split
from herd.data.tokens.chat import call_of
from herd.errors import HerdError
from herd.rl.environment import Reaction, text_of, was_cut

NAME = "calculator"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Compute an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "Such as 12 * (7 + 30)"}},
            "required": ["expression"],
        },
    },
}
LONGEST, DEEPEST, LARGEST = 200, 20, 10**30
"""Characters of an expression, brackets in one another, and the largest value."""
BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
QUESTION = "What is {}?"


def calculate(expression: str) -> Fraction:
    """The exact value of an expression. Raises HerdError where it has none, or one that is too large."""
    if len(expression) > LONGEST:
        raise HerdError(f"the expression has {len(expression)} characters: at most {LONGEST}")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, 0)
    except HerdError:
        raise
    except ZeroDivisionError:
        raise HerdError("division by zero") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        raise HerdError("not an expression") from None


def _value(node: ast.expr, depth: int) -> Fraction:
    if depth > DEEPEST:
        raise HerdError("too many brackets")
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            found = Fraction(str(number)) if isinstance(number, float) else Fraction(number)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=operand):
            found = _value(operand, depth + 1) * (-1 if isinstance(sign, ast.USub) else 1)
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in BINARY:
            first, second = _value(left, depth + 1), _value(right, depth + 1)
            if isinstance(kind, ast.Pow) and (second.denominator != 1 or abs(second) > 100):
                raise HerdError("a power is a whole number of at most 100")
            found = Fraction(BINARY[type(kind)](first, second))
        case _:
            raise HerdError("only numbers, + - * / // % ** and brackets")
    if max(abs(found.numerator), found.denominator) > LARGEST:
        raise HerdError("the value is too large")
    return found


def written(value: Fraction) -> str:
    """A value as the calculator says it: whole, or with at most six decimals."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.6f}".rstrip("0").rstrip(".")


class CalculatorEnvironment:
    """Cells are the number of operations, as `calculate-2`, of numbers up to 99."""

    tools: Sequence[Mapping[str, Any]] = (TOOL,)

    def __init__(
        self, *, seed: int, heldout: bool = False, lengths: Sequence[int] = (1, 2, 3, 4), most_turns: int = 4
    ) -> None:
        self._seed, self._heldout, self._most_turns = seed, heldout, most_turns
        self._cells = {f"calculate-{length}": length for length in lengths}

    @property
    def cells(self) -> Sequence[str]:
        return tuple(self._cells)

    def expression(self, cell: str, index: int) -> str:
        """What prompt `index` of `cell` asks for."""
        rng = stream(self._seed, NAME, cell, index)

        def drawn() -> str:
            text = str(rng.integers(1, 100))
            for _ in range(self._cells[cell]):
                sign, number = "+-*"[rng.integers(3)], rng.integers(1, 100)
                text = f"({text}) {sign} {number}" if sign == "*" and not text.isdigit() else f"{text} {sign} {number}"
            return text

        return of_split((drawn() for _ in count()), self._heldout)

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": QUESTION.format(self.expression(cell, index))}]

    def respond(self, messages: Messages, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        calls = answer.get("tool_calls") or ()
        turns = 1 + sum(message.get("role") == "assistant" for message in messages)
        if calls and turns < self._most_turns and not was_cut(answer):
            return Reaction(reward=None, messages=tuple(_result(call) for call in calls))
        begin, end = QUESTION.split("{}")
        question = asked(messages)
        known = question.startswith(begin) and question.endswith(end)
        try:
            right = calculate(question.removeprefix(begin).removesuffix(end)) if known else None
        except HerdError:
            right = None
        said = None if calls or was_cut(answer) else last_number(text_of(answer))
        score = float(right is not None and said is not None and Fraction(said) == right)
        used = float(any(message.get("role") == "tool" for message in messages))
        return Reaction(reward=score, parts={"right": score, "used": used, "answered": float(said is not None)})

    def demonstration(self, cell: str, index: int) -> list[dict[str, Any]]:
        expression = self.expression(cell, index)
        arguments = {"expression": expression}
        call = {"id": "call_0", "type": "function", "function": {"name": NAME, "arguments": arguments}}
        asking = {"role": "assistant", "content": "", "tool_calls": [call]}
        return [asking, _result(call), {"role": "assistant", "content": written(calculate(expression))}]


def _result(call: Any) -> dict[str, Any]:
    """What the tool says to a call, whatever the call is."""
    try:
        read = call_of(call)
        if read.name != NAME or not isinstance(read.arguments.get("expression"), str):
            raise HerdError(f"call {NAME}(expression=…)")
        content = written(calculate(read.arguments["expression"]))
    except HerdError as error:
        content = f"error: {error}"
    except (KeyError, TypeError):
        content = "error: not a call"
    named = {"tool_call_id": call["id"]} if isinstance(call, Mapping) and "id" in call else {}
    return {"role": "tool", "content": content, **named}
