"""Tool calls between text and structure, in Llama 4's two styles.

Pythonic, as in Meta's format document: `[weather(city="Oslo"), clock()]`; and JSON, as in transformers' template:
`{"name": "weather", "parameters": {"city": "Oslo"}}`. Both are read, also between `<|python_start|>` and
`<|python_end|>` and after some words; the first is written. Nothing is evaluated: a value is a literal or the call is
text. A call names one of the tools that were offered; `[1]` or `[weather]` in a sentence is text as soon as it is seen.
An argument whose name cannot stand before `=` is written as Python has it: `weather(**{"first name": "Ada"})`.
Read leniently, because models write so: line breaks and tabs inside a string, arguments as JSON text inside JSON, and
an answer that lacks its last bracket.
"""

import ast
import contextlib
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from herd.errors import HerdError

NAME = re.compile(r"[\w.-]+")
"""Of a tool."""
ODD = " !\"#$%&'()*+,/:;<=>?@[\\]^`{|}~\t\n\r"
"""What the name of an argument that is written before `=` does not hold; nor does it begin like a number."""
PLAIN = re.compile(rf"(?![0-9.-])[^{re.escape(ODD)}]+")
START, END = "<|python_start|>", "<|python_end|>"
OPENERS = (START, "<tool_call>")
"""What may stand before calls; the second, with `</tool_call>` behind, around each call of models that speak ChatML."""
LONGEST_HEAD = 1000
"""Characters, white space included, within which the name of the first tool must stand."""
# Quoted strings as wholes, so that a bracket inside one does not count.
_TOKEN = re.compile(
    r"'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[()\[\]{},]", re.S
)
_MARK = re.compile("'''|\"\"\"|['\"()\\[\\]{}]")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
MAX_READ = 2_000_000
"""Characters that are read in all to find where a call that was cut off can be closed: what is given up at its end is a
half name, number or escape."""
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]
    """Values that JSON can hold."""
    num_open: int = 0
    """Quotes and brackets at the end of the arguments' JSON that an answer which was cut off did not reach."""

    @property
    def arguments_json(self) -> str:
        """The arguments as JSON; of a call that was cut off, the beginning of it."""
        text = json.dumps(self.arguments, ensure_ascii=False)
        return text[: len(text) - self.num_open]


@dataclass(frozen=True, kw_only=True)
class ParsedAnswer:
    """The text of an answer, and the tool calls in it."""

    text: str
    """The words; the whole text where there is no call in it."""
    calls: tuple[Call, ...] = ()
    cut: bool = False
    """Whether the limit cut the calls off."""
    reason: str | None = None
    """Why what began like a call is text."""


_FAULTS = (ValueError, SyntaxError, RecursionError, MemoryError)


def parse_answer(text: str, names: Collection[str], *, cut: bool = False) -> ParsedAnswer:
    """The words and the calls of an answer, for the tools of these `names`. What is no sound call stays text.

    `cut`: the answer ended at its limit; of calls that are not whole then, what there is of them.
    """
    state, at = find_call(text, names)
    if state != "call":
        return ParsedAnswer(text=text)
    body = text[at:].strip()
    for opener in OPENERS:
        body = body.removeprefix(opener)
    body = body.removesuffix(END).strip()
    words = text[:at].rstrip()
    try:
        return ParsedAnswer(text=words, calls=_calls(body, names))
    except _FAULTS as error:
        reason = str(error) or type(error).__name__
    if cut and (calls := _cut_calls(body, names)):
        return ParsedAnswer(text=words, calls=calls, cut=True)
    with contextlib.suppress(*_FAULTS):
        missing = _missing(body)
        if not cut and len(missing) == 1 and missing[0] in {")", "]", "}"}:
            return ParsedAnswer(text=words, calls=_calls(body + missing[0], names))
    return ParsedAnswer(text=text, reason=reason)


def _calls(body: str, names: Collection[str], *, cut: bool = False) -> tuple[Call, ...]:
    """Raises one of `_FAULTS` where these are no sound calls of the tools `names`."""
    calls = tuple(_pythonic(body) if _is_pythonic(body) else _json(body, cut=cut))
    for call in calls:
        if call.name not in names:
            raise ValueError(f"there is no tool {call.name!r}")
        # Refuses what JSON cannot say: infinity, half a surrogate pair, an integer beyond Python's own limit.
        json.dumps(call.arguments, ensure_ascii=False, allow_nan=False).encode()
    return calls


def _is_pythonic(body: str) -> bool:
    return re.match(r"\[\s*[^\s{]", body) is not None


def _cut_calls(body: str, names: Collection[str]) -> tuple[Call, ...]:
    """What there is of calls that break off: closed where they do, or a little before; none where that is no call."""
    for text, missing in _closed(body):
        with contextlib.suppress(*_FAULTS):
            *before, last = _calls(text, names, cut=True)
            if _is_pythonic(body):  # of "]", ")" and then those of a value; `**{` is no bracket of the arguments
                num_open = sum(mark != "}**" for mark in missing[2:]) + 1 if len(missing) > 1 else 0
            else:  # the outer object's is not the arguments', nor is a list's around it; they may not have begun
                unbegun = bool(missing) and not last.arguments
                num_open = max(int(unbegun), len(missing) - (2 if body[0] == "[" else 1))
            return (*before, replace(last, num_open=num_open))
    return ()


def _closed(body: str) -> Iterator[tuple[str, list[str]]]:
    """`body` with what is missing at its end, and that; the same without its last character, …, until nothing is."""
    tries = min(len(body), 1 + MAX_READ // (len(body) + 1))
    for end in range(len(body), len(body) - tries, -1):
        try:
            missing = _missing(body[:end])
        except ValueError:
            continue
        yield body[:end] + "".join("}" if mark == "}**" else mark for mark in reversed(missing)), missing
        if not missing:  # what follows the whole is no part of it
            return


def read_arguments(text: str) -> dict[str, Any]:
    """The arguments that a client sends back as `text`, however broken: a call of the past must not end a conversation.

    What cannot be read is one argument, named so.
    """
    # White space at the end may be of a text that was cut off.
    for whole, _ in _closed(text.lstrip() or "{}"):
        try:
            found = json.loads(whole, strict=False)
            if isinstance(found, str):  # JSON text inside JSON
                found = json.loads(found, strict=False)
        except ValueError:
            continue
        except RecursionError:
            break
        if isinstance(found, dict):
            return found
        return {} if found is None else {"arguments": found}
    return {"arguments": text}


def _missing(body: str) -> list[str]:
    """The quotes and brackets that are open at the end of `body`, outermost first, as what would close them; "}**" of
    arguments in a dictionary. Raises ValueError where brackets do not match."""
    marks: list[str] = []
    at = 0
    while found := _MARK.search(body, at):
        mark, at = found[0], found.end()
        if mark in _CLOSING:
            marks.append("}**" if body.endswith("**", 0, found.start()) and mark == "{" else _CLOSING[mark])
        elif mark in {")", "]", "}"}:
            if not marks or marks.pop()[0] != mark:
                raise ValueError(f"{mark!r} closes nothing")
        else:
            end = re.compile(rf"(?:\\.|(?!{mark})[^\\])*", re.S).match(body, at)
            assert end is not None
            if not body.startswith(mark, end.end()):
                if end.end() < len(body):
                    raise ValueError("the text ends within an escape")
                return [*marks, mark]
            at = end.end() + len(mark)
    return marks


def find_call(text: str, names: Collection[str]) -> tuple[Literal["text", "open", "call"], int]:
    """Whether a call begins in the beginning of an answer, and from which character on it must not be shown yet.

    "text": nothing like a call in it. "open": its end could still become one. "call": one has begun there; whether it
    is sound, `parse_answer` finds at the end.
    """
    heads = [
        head for name in names for head in (f"[{name}(", f'{{"name":"{name}"', f'{{"type":"function","name":"{name}"')
    ]
    for match in re.finditer(r"[\[{<]", text):
        tail = text[match.start() : match.start() + LONGEST_HEAD]
        if tail[0] == "<":
            if any(opener.startswith(tail) for opener in OPENERS):
                return "open", match.start()
            opener = next(filter(tail.startswith, OPENERS), None)
            if opener is None:
                continue
            tail = tail.removeprefix(opener)
        # White space may stand between any two parts of a head.
        head = re.sub(r"\s+", "", tail)
        head = head[1:] if head.startswith("[{") else head
        if any(head.startswith(known) for known in heads):
            return "call", match.start()
        if match.start() + LONGEST_HEAD > len(text) and any(known.startswith(head) for known in heads):
            return "open", match.start()
    return "text", len(text)


class CallFilter:
    """Passes the words of a stream on and holds a call back, and the white space before it, however the text is cut
    into pieces."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._called = False

    def push(self, text: str) -> str:
        """What can be shown by now."""
        if not self._names:
            return text
        self._held += text
        if self._called:
            return ""
        state, at = find_call(self._held, self._names)
        self._called = state == "call"
        at = len(self._held[:at].rstrip())
        shown, self._held = self._held[:at], self._held[at:]
        return shown

    def finish(self, *, cut: bool = False) -> ParsedAnswer:
        """The calls, and the words that were held back, when the answer ends; `cut`: at its limit."""
        return parse_answer(self._held, self._names, cut=cut)


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
            key = re.match(rf"[ \t\r\n]*(?:({PLAIN.pattern})[ \t\r\n]*=(?!=)|\*\*(?=\s*\{{))", part)
            if not key:
                raise ValueError(f"{part.strip()[:40]!r} is not name=value")
            value = _literal(part[key.end() :])
            for name, item in ({key[1]: value} if key[1] else value).items():
                if name in arguments:
                    raise ValueError(f"the argument {name!r} is given twice")
                arguments[name] = item
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


def _literal(source: str) -> Any:
    """The value of a Python literal, in whose strings line breaks may stand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a backslash that means nothing
        return _value(ast.parse(_TOKEN.sub(_on_one_line, source).strip(), mode="eval").body)


def _on_one_line(token: re.Match[str]) -> str:
    """A string with its line breaks as escapes: Python allows none, and would make \\r\\n one of them."""
    escapes = {"\n": r"\n", "\r": r"\r", "\0": r"\x00"}
    return re.sub(r"\\.|[\n\r\0]", lambda found: escapes.get(found[0], found[0]), token[0], flags=re.S)


def _value(node: ast.expr) -> Any:
    """The value of a literal; names, operators, calls and all else that would have to be evaluated is refused."""
    match node:
        case ast.Constant(value=str() as text):
            # JSON's escapes make one character of a surrogate pair, Python's two halves.
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        case ast.Constant(value=(int() | float() | None) as value):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
            return -value if isinstance(sign, ast.USub) else value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(
            isinstance(key, ast.Constant) and isinstance(key.value, str) for key in keys
        ):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}  # type: ignore[arg-type]
        case ast.Name(id=word) if word in _WORDS:  # JSON's, which models mix in
            return _WORDS[word]
    raise ValueError(f"{ast.unparse(node)[:40]!r} is not a literal")


def _json(body: str, *, cut: bool) -> Iterator[Call]:
    """`{"name": …, "parameters": …}`, several of them one after the other or in a list; `cut` before its parameters."""
    decoder, at = json.JSONDecoder(strict=False), 0  # line breaks and tabs in strings
    while at < len(body):
        found, at = decoder.raw_decode(body, at)
        for item in found if isinstance(found, list) else [found]:
            if not isinstance(item, dict) or item.keys() - {"type", "name", "parameters", "arguments"}:
                raise ValueError(f"{str(item)[:40]!r} is not an object of name and parameters")
            arguments = item.get("parameters", item.get("arguments", {} if cut else None))
            if isinstance(arguments, str):
                arguments = json.loads(arguments, strict=False)
            if not isinstance(item.get("name"), str) or not isinstance(arguments, dict):
                raise ValueError(f"{str(item)[:40]!r} lacks a name or an object of parameters")
            yield Call(name=item["name"], arguments=arguments)
        at = re.compile(r"(?:[\s,;]|</?tool_call>)*").match(body, at).end()  # type: ignore[union-attr]


def write_calls(calls: Sequence[Call]) -> str:
    """`[f(a=1), g(b="x")]`, which `parse_answer` reads back. Raises HerdError where a tool's name is none."""

    def literal(value: Any) -> str:
        match value:
            case str():
                return json.dumps(value, ensure_ascii=False)  # Python reads JSON's strings
            case Mapping():
                return "{" + ", ".join(f"{literal(str(key))}: {literal(item)}" for key, item in value.items()) + "}"
            case list() | tuple():
                return "[" + ", ".join(map(literal, value)) + "]"
        return str(value)

    def argument(name: str, value: Any) -> str:
        before, behind = argument_affixes(name)
        return f"{before}{literal(value)}{behind}"

    for call in calls:
        if not NAME.fullmatch(call.name):
            raise HerdError(f"{call.name!r} cannot be the name of a tool: use letters, digits, _, - and .")
    written = (f"{call.name}({', '.join(argument(*pair) for pair in call.arguments.items())})" for call in calls)
    return f"[{', '.join(written)}]"


def argument_affixes(name: str) -> tuple[str, str]:
    """What is written before and behind the value of an argument."""
    return (f"{name}=", "") if PLAIN.fullmatch(name) else (f"**{{{json.dumps(name, ensure_ascii=False)}: ", "}")


def tools_prompt(tools: Sequence[Mapping[str, Any]]) -> str:
    """What tells the model of `tools` (each OpenAI's `{"type": "function", "function": {…}}`) and how to call them."""
    functions = [tool.get("function", tool) for tool in tools]
    return f"{TOOLS_PROMPT}{json.dumps(functions, ensure_ascii=False, indent=4)}"


TOOLS_PROMPT = """You can call functions. To call one or more, answer with nothing but a list of calls in this format:
[func_name1(param_name1=param_value1, param_name2=param_value2), func_name2(param_name=param_value)]
If no function fits the question, or a required parameter is not known, answer in words.

Here is a list of functions in JSON format that you can invoke.

"""
