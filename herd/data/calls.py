"""Tool calls between text and structure, in Llama 4's two styles.

Pythonic, as in Meta's format document: `[weather(city="Oslo"), clock()]`; and JSON, as in transformers' template:
`{"name": "weather", "parameters": {"city": "Oslo"}}`. Both are read, also between `<|python_start|>` and
`<|python_end|>` and after some words; the first is written. Nothing is evaluated: a value is a literal or the call is
text. A call names one of the tools that were offered; `[1]` or `[weather]` in a sentence is text as soon as it is seen.
"""

import ast
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from herd.core.errors import HerdError

NAME = re.compile(r"[^\W\d][\w.-]*")
"""Of a tool or an argument: Python's, and the dashes and dots that OpenAI's clients use."""
START, END = "<|python_start|>", "<|python_end|>"
LONGEST_HEAD = 1000
"""Characters, white space included, within which the name of the first tool must stand."""
# Quoted strings as wholes, so that a bracket inside one does not count.
_TOKEN = re.compile(
    r"'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[()\[\]{},]", re.S
)
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]
    """Values that JSON can hold."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said, read."""

    text: str
    """The words; all that was said when there is no call in it."""
    calls: tuple[Call, ...] = ()
    reason: str | None = None
    """Why what began like a call is text."""


def parse_answer(text: str, names: Collection[str]) -> Answer:
    """The words and the calls of a whole answer, for the tools of these `names`. What is no sound call stays text."""
    state, at = standing(text, names)
    if state != "call":
        return Answer(text=text)
    body = text[at:].strip().removeprefix(START).removesuffix(END).strip()
    try:
        calls = tuple(_pythonic(body) if re.match(r"\[\s*[^\s{]", body) else _json(body))
        for call in calls:
            if call.name not in names:
                raise ValueError(f"there is no tool {call.name!r}")
            # Refuses what JSON cannot say: infinity, half a surrogate pair, an integer beyond Python's own limit.
            json.dumps(call.arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        return Answer(text=text, reason=str(error) or type(error).__name__)
    return Answer(text=text[:at].rstrip(), calls=calls)


def standing(text: str, names: Collection[str]) -> tuple[Literal["text", "open", "call"], int]:
    """How the beginning of an answer stands, and from which character on it must not be shown yet.

    "text": nothing like a call in it. "open": its end could still become one. "call": one has begun there; whether it
    is sound, `parse_answer` says at the end.
    """
    heads = [
        head for name in names for head in (f"[{name}(", f'{{"name":"{name}"', f'{{"type":"function","name":"{name}"')
    ]
    for match in re.finditer(r"[\[{<]", text):
        tail = text[match.start() : match.start() + LONGEST_HEAD]
        if tail[0] == "<":
            if START.startswith(tail):
                return "open", match.start()
            if not tail.startswith(START):
                continue
            tail = tail.removeprefix(START)
        # White space may stand between any two parts of a head.
        head = re.sub(r"\s+", "", tail)
        head = head[1:] if head.startswith("[{") else head
        if any(head.startswith(known) for known in heads):
            return "call", match.start()
        if match.start() + LONGEST_HEAD > len(text) and any(known.startswith(head) for known in heads):
            return "open", match.start()
    return "text", len(text)


class CallFilter:
    """Passes the words of a stream on and keeps a call back, however the text is cut into pieces."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._called = False

    def push(self, text: str) -> str:
        """What can be shown by now."""
        self._held += text
        if self._called:
            return ""
        state, at = standing(self._held, self._names)
        self._called = state == "call"
        shown, self._held = self._held[:at], self._held[at:]
        return shown

    def finish(self) -> Answer:
        """The calls, and the words that were kept back, when the answer ends."""
        return parse_answer(self._held, self._names)


def _pythonic(body: str) -> Iterator[Call]:
    """`[f(a=1), g()]`."""
    at, ended = 1, ""
    while ended != "]":
        opened = re.compile(rf"\s*({NAME.pattern})\s*\(").match(body, at)
        if not opened:
            raise ValueError(f"{body[at : at + 20]!r} is not a call")
        parts, at = _parts(body, opened.end())
        arguments: dict[str, Any] = {}
        for part in parts:
            key = re.match(rf"\s*({NAME.pattern})\s*=(?!=)", part)
            if not key or key[1] in arguments:
                raise ValueError(f"{part.strip()[:40]!r} is not name=value, or the name stands twice")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a backslash that means nothing
                arguments[key[1]] = _value(ast.parse(part[key.end() :].strip(), mode="eval").body)
        yield Call(name=opened[1], arguments=arguments)
        after = re.compile(r"\s*(,(?:\s*\])?|\])").match(body, at)
        if not after:
            raise ValueError(f"{body[at : at + 20]!r} follows a call: expected ',' or ']'")
        at, ended = after.end(), after[1][-1]
    if body[at:].strip():
        raise ValueError(f"{body[at:].strip()[:20]!r} follows the list of calls")


def _parts(body: str, begin: int) -> tuple[list[str], int]:
    """What the commas separate from `begin` to the closing parenthesis, and the place behind it."""
    depth, parts = 0, []
    for token in _TOKEN.finditer(body, begin):
        mark = token[0]
        if mark in {"(", "[", "{"}:
            depth += 1
        elif depth and mark in {")", "]", "}"}:
            depth -= 1
        elif not depth and mark in {",", ")"}:
            parts.append(body[begin : token.start()])
            begin = token.end()
            if mark == ")":
                return parts if parts[-1].strip() else parts[:-1], begin
    raise ValueError("a bracket is not closed")


def _value(node: ast.expr) -> Any:
    """What a literal says; names, operators, calls and everything else that would have to be evaluated is refused."""
    match node:
        case ast.Constant(value=(str() | int() | float() | None) as value):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
            return -value if isinstance(sign, ast.USub) else value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(
            isinstance(key, ast.Constant) and isinstance(key.value, str) for key in keys
        ):
            return {key.value: _value(value) for key, value in zip(keys, values, strict=True)}  # type: ignore[union-attr]
        case ast.Name(id=word) if word in _WORDS:  # JSON's, which models mix in
            return _WORDS[word]
    raise ValueError(f"{ast.unparse(node)[:40]!r} is not a literal")


def _json(body: str) -> Iterator[Call]:
    """`{"name": …, "parameters": …}`, several of them one after the other or in a list."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(body):
        found, at = decoder.raw_decode(body, at)
        for item in found if isinstance(found, list) else [found]:
            if not isinstance(item, dict) or item.keys() - {"type", "name", "parameters", "arguments"}:
                raise ValueError(f"{str(item)[:40]!r} is not an object of name and parameters")
            arguments = item.get("parameters", item.get("arguments"))
            if not isinstance(item.get("name"), str) or not isinstance(arguments, dict):
                raise ValueError(f"{str(item)[:40]!r} lacks a name or an object of parameters")
            yield Call(name=item["name"], arguments=arguments)
        at = re.compile(r"[\s,;]*").match(body, at).end()  # type: ignore[union-attr]


def write_calls(calls: Sequence[Call]) -> str:
    """`[f(a=1), g(b="x")]`, which `parse_answer` reads back. Raises HerdError for a name that is none."""

    def literal(value: Any) -> str:
        match value:
            case str():
                return json.dumps(value, ensure_ascii=False)  # Python reads JSON's strings
            case Mapping():
                return "{" + ", ".join(f"{literal(str(key))}: {literal(item)}" for key, item in value.items()) + "}"
            case list() | tuple():
                return "[" + ", ".join(map(literal, value)) + "]"
        return str(value)

    for call in calls:
        for name in (call.name, *call.arguments):
            if not NAME.fullmatch(name):
                raise HerdError(
                    f"{name!r} cannot be the name of a tool or an argument: use letters, digits, _, - and ."
                )
    written = (
        f"{call.name}({', '.join(f'{key}={literal(value)}' for key, value in call.arguments.items())})"
        for call in calls
    )
    return f"[{', '.join(written)}]"


def tools_prompt(tools: Sequence[Mapping[str, Any]]) -> str:
    """What tells the model of `tools` (each OpenAI's `{"type": "function", "function": {…}}`) and how to call them."""
    functions = [tool.get("function", tool) for tool in tools]
    return f"{TOOLS_PROMPT}{json.dumps(functions, ensure_ascii=False, indent=4)}"


TOOLS_PROMPT = """You can call functions. To call one or more, answer with nothing but a list of calls in this format:
[func_name1(param_name1=param_value1, param_name2=param_value2), func_name2(param_name=param_value)]
If no function fits the question, or a required parameter is not known, answer in words.

Here is a list of functions in JSON format that you can invoke.

"""
