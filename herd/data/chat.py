"""Messages to tokens, in Llama 4's chat format.

`<|begin_of_text|>` then, for each message, `<|header_start|>role<|header_end|>\\n\\n…<|eot|>`. Pictures stand in the
content as their image tokens; a video is its frames, each behind its time. `chat_template.jinja` beside this file
renders the same for other programs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from herd.core.errors import HerdError, unknown
from herd.data.image import ImageProcessor, Tiles
from herd.data.template import render_template
from herd.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "ipython")


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """Token ids of a conversation."""

    ids: list[int]
    learnt: list[bool]
    """True for what the assistant said, its end-of-turn token too."""
    tiles: list[Tiles]
    """The pictures, in order."""


def header(tokenizer: Tokenizer, role: str) -> list[int]:
    """What stands before a message of `role`."""
    special = tokenizer.special
    return [
        special["<|header_start|>"], *tokenizer.encode(role), special["<|header_end|>"], *tokenizer.encode("\n\n")
    ]  # fmt: skip


def render_messages(
    tokenizer: Tokenizer,
    processor: ImageProcessor,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
) -> Rendered:
    """Render OpenAI-style messages. Parts of a content: `{"type": "text", "text": …}`, `{"type": "image", "image":
    PIL picture or Tiles}`, `{"type": "video", "frames": [(seconds, picture or Tiles), …]}`. A tokenizer with a chat
    template of its own is rendered by that."""
    if wrong := [message["role"] for message in messages if message["role"] not in ROLES]:
        raise unknown("role", str(wrong[0]), ROLES)
    if tokenizer.template is not None:
        rendered = render_template(tokenizer, processor, messages, add_generation_prompt=add_generation_prompt)
        return Rendered(ids=rendered[0], learnt=rendered[1], tiles=rendered[2])
    special = tokenizer.special
    ids, learnt = [special["<|begin_of_text|>"]], [False]
    tiles: list[Tiles] = []

    def add(more: list[int], by_assistant: bool) -> None:
        ids.extend(more)
        learnt.extend([by_assistant] * len(more))

    def picture(item: Image.Image | Tiles) -> list[int]:
        cut = item if isinstance(item, Tiles) else processor.tiles(item)
        tiles.append(cut)
        return [special[token] for token in processor.tokens(cut)]

    for message in messages:
        role = message["role"]
        add(header(tokenizer, role), False)
        content = message["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        body: list[int] = []
        for part in parts:
            if part["type"] == "text":
                body += tokenizer.encode(part["text"].strip())
            elif part["type"] == "image":
                body += picture(part["image"])
            elif part["type"] == "video":
                for seconds, frame in part["frames"]:
                    body += tokenizer.encode(f"{seconds:.1f}s") + picture(frame)
            else:
                raise HerdError(f"content part of type {part['type']!r} is not one of text, image, video")
        add([*body, special["<|eot|>"]], role == "assistant")
    if add_generation_prompt:
        add(header(tokenizer, "assistant"), False)
    return Rendered(ids=ids, learnt=learnt, tiles=tiles)
