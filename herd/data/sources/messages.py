"""Messages of the common chat formats as the one form that Herd trains on, and why some conversations are skipped.

    {"from": "human", "value": "Hi"}                    →  {"role": "user", "content": "Hi"}
    {"from": "function_call", "value": '{"name": …}'}   →  {"role": "assistant", "tool_calls": [{"function": …}]}
    {"type": "image_url", "image_url": {"url": "a.png"}} →  {"type": "image", "image": "a.png"}

A conversation has an optional system message, then the user's and the assistant's in turn, and ends with the
assistant's; behind a message of tool calls come their results. What is not so is skipped whole, for what is missing
would be learnt to be missing.
"""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from herd.data.text.normalise import is_mojibake, without_surrogates
from herd.data.tokens.chat import ROLES

Message = dict[str, Any]
ALIASES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "bing": "assistant", "bard": "assistant", "claude": "assistant", "developer": "system", "observation": "tool",
    "function": "tool", "tool_response": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
"""What other formats call the roles."""
CALLS = ("function_call", "tool_call")
"""Roles of an assistant's message that is a call and nothing else (ShareGPT)."""
KEPT = ("name", "tool_call_id", "reasoning_content", "thinking", "reasoning")
IMAGE_MARK = "<image>"
"""Where a picture of the row stands in a text (LLaVA)."""


class Skip(Exception):
    """Why a conversation is skipped: a reason of `Notes`, and what it was in this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


def message(values: Any, images: list[Any]) -> Message:
    """One message in Herd's form; takes from `images` those that its parts do not name. Raises Skip."""
    if not isinstance(values, Mapping):
        raise Skip("chats with a message that is no object", type(values).__name__)
    said = values.get("role", values.get("from"))
    if not isinstance(said, str):
        raise Skip("chats with a message without a role", ", ".join(map(str, values)))
    role = ALIASES.get(said.strip().lower(), said.strip().lower())
    content = values.get("content", values.get("value", values.get("text")))
    if role in CALLS:
        return {"role": "assistant", "content": None, "tool_calls": _calls(_json(content, "a tool call"))}
    if role not in ROLES:
        near = difflib.get_close_matches(role, [*ROLES, *ALIASES], n=1)
        raise Skip("chats with an unknown role", repr(said) + (f", did you mean {near[0]!r}?" if near else ""))
    if role == "assistant" and values.get("weight") == 0:
        raise Skip("chats with a message of weight 0: split the chat before it", "")
    made: Message = {"role": role, "content": _content(content, images)}
    calls = values.get("tool_calls") or values.get("function_call")
    if calls:
        made["tool_calls"] = _calls(calls)
    for key in KEPT:
        if isinstance(values.get(key), str):
            made[key] = values[key]
    if not calls and _is_empty(made["content"]):
        raise Skip("chats with an empty message", role)
    return made


def _content(content: Any, images: list[Any]) -> str | list[dict[str, Any]] | None:
    if content is None:
        return None
    if isinstance(content, str):
        return _with_images(without_surrogates(content), images)
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        raise Skip("chats with a content that is neither text nor parts", type(content).__name__)
    parts = [_part(part, images) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _with_images(text: str, images: list[Any]) -> str | list[dict[str, Any]]:
    if not images or IMAGE_MARK not in text:
        return text
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(text.split(IMAGE_MARK)):
        if index:
            parts.append(_image(images))
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _image(images: list[Any]) -> dict[str, Any]:
    if not images:
        raise Skip("chats that show more pictures than their rows have")
    return {"type": "image", "image": images.pop(0)}


def _part(part: Any, images: list[Any]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": without_surrogates(part)}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in {"text", "input_text", "output_text"} and isinstance(part.get("text"), str):
        return {"type": "text", "text": without_surrogates(part["text"])}
    if kind in {"image", "image_url", "input_image"}:
        where = part.get("image_url") or part.get("image") or part.get("path") or part.get("url")
        where = where.get("url", where) if isinstance(where, Mapping) else where
        return {"type": "image", "image": where} if where is not None else _image(images)
    raise Skip("chats with a part of an unknown type", repr(kind))


def _is_empty(content: str | list[dict[str, Any]] | None) -> bool:
    return not content or (isinstance(content, str) and not content.strip())


def _json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Skip(f"chats with {what} that is not JSON", value[:60]) from None


def _calls(values: Any) -> list[dict[str, Any]]:
    values = _json(values, "tool calls")
    calls = []
    for call in values if isinstance(values, list) else [values]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if (
            not isinstance(call, Mapping)
            or not isinstance(function, Mapping)
            or not isinstance(function.get("name"), str)
        ):
            raise Skip("chats with a tool call without a name")
        arguments = _json(function.get("arguments") or function.get("parameters") or {}, "arguments of a tool call")
        if not isinstance(arguments, Mapping):
            raise Skip("chats with arguments of a tool call that are no object", function["name"])
        # A table with one type for all rows (Parquet, Arrow) fills in what this call does not have.
        known = {key: value for key, value in arguments.items() if value is not None}
        made = {"type": "function", "function": {"name": function["name"], "arguments": known}}
        calls.append({"id": call["id"], **made} if isinstance(call.get("id"), str) else made)
    return calls


def tools_of(values: Any) -> list[dict[str, Any]]:
    """The tools that a conversation offers, from a list or its JSON. Raises Skip."""
    values = _json(values, "tools") if values else []
    if not isinstance(values, list) or not all(isinstance(tool, Mapping) for tool in values):
        raise Skip("chats with tools that are no list of objects", type(values).__name__)
    made: list[dict[str, Any]] = [
        dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in values
    ]
    if wrong := [tool for tool in made if not isinstance(tool["function"].get("name"), str)]:
        raise Skip("chats with a tool without a name", str(wrong[0])[:60])
    return made


def check_turns(messages: Sequence[Message], *, answered: bool = True) -> None:
    """Raises Skip where the messages do not follow one another as in a conversation; `answered`: to its end."""
    turns = [one for one in messages if one["role"] != "system"]
    if any(one["role"] == "system" for one in messages[1:]):
        raise Skip("chats with a system message that is not the first")
    if not turns:
        raise Skip("chats without a message" if not messages else "chats with a system message alone")
    if turns[0]["role"] != "user":
        raise Skip(f"chats that begin with the {turns[0]['role']}")
    called = False
    for before, one in pairwise(turns):
        called = bool(before.get("tool_calls")) or (before["role"] == "tool" and called)
        if one["role"] == "tool":
            if not called:
                raise Skip("chats with a tool's result and no call before it")
        elif one["role"] == before["role"]:
            raise Skip("chats that repeat a role", one["role"])
        elif before["role"] == "tool" and one["role"] != "assistant":
            raise Skip("chats with a tool's result that the assistant does not answer")
        elif before.get("tool_calls"):
            raise Skip("chats with a tool call and no result behind it")
    last = turns[-1]["role"]
    if answered and last != "assistant":
        raise Skip(f"chats that end with the {last}: there is no answer to learn")
    if not answered and last == "assistant":
        raise Skip("prompts that end with the assistant")
    said = "\n".join(text_of(one) for one in messages)
    if is_mojibake(said):
        raise Skip("chats decoded with the wrong encoding", said[:60])


def text_of(one: Message) -> str:
    """The words of a message."""
    content = one["content"]
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def with_pictures(messages: Sequence[Message], keep: Callable[[Any], str]) -> list[Message]:
    """The messages with each picture named by what `keep` calls it."""

    def kept(part: dict[str, Any]) -> dict[str, Any]:
        return {"type": "image", "picture": keep(part["image"])} if part["type"] == "image" else part

    return [
        {**one, "content": [kept(part) for part in one["content"]]} if isinstance(one["content"], list) else one
        for one in messages
    ]
