"""Messages to tokens, in Llama 4's chat format.

`<|begin_of_text|>` then, for each message, `<|header_start|>role<|header_end|>\\n\\n…<|eot|>`; a message of tool calls
and the result of a tool, whose role is `ipython`, end with `<|eom|>`. Pictures stand in the content as their image
tokens; a video is its frames, each behind its time. Tools are listed in the system message, and calls written as
`[f(a=1), g(b="x")]`. Text is taken as it is and never becomes a control token. Id for id Meta's ChatFormat
(llama-models 0.3.0) except where its calls could not be read back: quotes inside a string, dictionaries, several calls,
words before a call.

`chat_template.jinja` beside this file renders the same for other programs, as one string: there a merge can cross the
border between `\\n\\n` and text that begins with a line break, and between two parts of text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from herd.data.media.image import ImageProcessor, Tiles
from herd.data.tokens.template import render_template
from herd.data.tokens.tokenizer import Tokenizer
from herd.data.tokens.tool_calls import END, START, Call, tools_prompt, write_calls
from herd.errors import HerdError, unknown

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "ipython": "ipython", "tool": "ipython"}
"""What a message's role is called in the header."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """Token ids of a conversation."""

    ids: list[int]
    learnt: list[bool]
    """True for what the assistant said, its end-of-turn token too."""
    tiles: list[Tiles]
    """The pictures, in order."""


def header(tokenizer: Tokenizer, role: str) -> list[int]:
    """What precedes a message of `role`."""
    special = tokenizer.special
    return [
        special["<|header_start|>"], *tokenizer.encode(role), special["<|header_end|>"], *tokenizer.encode("\n\n")
    ]  # fmt: skip


def render_messages(
    tokenizer: Tokenizer,
    processor: ImageProcessor,
    messages: Sequence[dict[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = True,
) -> Rendered:
    """Render OpenAI-style messages. Parts of a content: `{"type": "text", "text": …}`, `{"type": "image", "image":
    PIL picture or Tiles}`, `{"type": "video", "frames": [(seconds, picture or Tiles), …]}`, both with, if wanted, the
    `max_tiles` of a picture or frame.

    An assistant's message may have `tool_calls` beside its content, each OpenAI's `{"function": {"name": …,
    "arguments": dictionary or its JSON}}`; the answer to one is a message of role `ipython`, in OpenAI's word `tool`.
    A tokenizer with a chat template of its own is rendered by that.
    """
    if wrong := [message["role"] for message in messages if message["role"] not in ROLES]:
        raise unknown("role", str(wrong[0]), ROLES)
    for i, message in enumerate(messages):
        for part in parts_of(message):
            if part["type"] == "text":
                checked_text(part["text"], f"messages[{i}]")
    if tokenizer.template is not None:
        plain = [_plain(message) for message in messages]
        ids, learnt, tiles = render_template(
            tokenizer, processor, plain, tools=tools, add_generation_prompt=add_generation_prompt
        )
        return Rendered(ids=ids, learnt=learnt, tiles=tiles)
    special = tokenizer.special
    ids, learnt = [special["<|begin_of_text|>"]], [False]
    tiles = []

    def add(more: list[int], by_assistant: bool) -> None:
        ids.extend(more)
        learnt.extend([by_assistant] * len(more))

    def picture(item: Image.Image | Tiles, max_tiles: int | None = None) -> list[int]:
        cut = item if isinstance(item, Tiles) else processor.tiles(item, max_tiles=max_tiles)
        tiles.append(cut)
        return [special[token] for token in processor.tokens(cut)]

    for message in with_tools(messages, tools):
        role = ROLES[message["role"]]
        add(header(tokenizer, role), False)
        parts = parts_of(message)
        calls = [call_of(call) for call in message.get("tool_calls") or ()]
        body: list[int] = []
        for part in parts:
            if part["type"] == "text":
                body += tokenizer.encode(part["text"])
            elif part["type"] == "image":
                body += picture(part["image"], part.get("max_tiles"))
            elif part["type"] == "video":
                for seconds, frame in part["frames"]:
                    body += tokenizer.encode(f"{seconds:.1f}s") + picture(frame, part.get("max_tiles"))
            else:
                raise HerdError(f"content part of type {part['type']!r} is not one of text, image, video")
        if calls:
            written = tokenizer.encode(checked_text(write_calls(calls), "tool_calls"))
            # Behind words the calls need their own marks: nothing else would say where they begin.
            body += [special[START], *written, special[END]] if body else written
        add([*body, special["<|eom|>" if calls or role == "ipython" else "<|eot|>"]], role == "assistant")
    if add_generation_prompt:
        add(header(tokenizer, "assistant"), False)
    return Rendered(ids=ids, learnt=learnt, tiles=tiles)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its content in parts and the arguments of its calls as dictionaries."""
    calls = [
        {**call, "function": {"name": read.name, "arguments": read.arguments}}
        for call in message.get("tool_calls") or ()
        for read in [call_of(call)]
    ]
    return {**message, "content": parts_of(message), "tool_calls": calls}


def checked_text(text: str, where: str) -> str:
    """`text`, once it is Unicode throughout: half of a surrogate pair, or a byte that was none, would become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HerdError(f"{where}: the text is not Unicode at character {error.start}: write it as UTF-8") from None
    return text


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a message's content, which may be text, or nothing beside calls."""
    content = message.get("content")
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def with_tools(messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`messages` with the tools listed at the end of the system message, which is added if there is none."""
    if not tools:
        return list(messages)
    system, rest = {"role": "system", "content": ""}, list(messages)
    if rest and rest[0]["role"] == "system":
        system = rest.pop(0)
    text = "".join(part["text"] for part in parts_of(system))
    content = f"{text}\n\n{tools_prompt(tools)}" if text else tools_prompt(tools)
    return [{"role": "system", "content": content}, *rest]


def call_of(call: Mapping[str, Any]) -> Call:
    """A call as OpenAI's clients send it."""
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise HerdError(f"the arguments of {function['name']!r} are not JSON ({error})") from None
    if not isinstance(arguments, dict):
        raise HerdError(f"the arguments of {function['name']!r} are not a JSON object")
    return Call(name=function["name"], arguments=arguments)
