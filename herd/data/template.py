"""Messages to tokens by a folder's own chat template, for models that do not speak Llama 4's format.

The template (`chat_template.jinja`) is somebody else's program: it runs in jinja2's sandbox, with the variables and
functions that transformers gives it, and cannot change what it is given. What a message says never becomes a control
token: each place in it where one is spelt is broken by a mark, and the mark is taken out when that text is encoded.
Left out: tools and documents.
"""

import datetime
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from herd.core.errors import HerdError
from herd.data.image import ImageProcessor, Tiles

if TYPE_CHECKING:
    from herd.data.tokenizer import Tokenizer


def render_template(
    tokenizer: "Tokenizer",
    processor: ImageProcessor,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool,
) -> tuple[list[int], list[bool], list[Tiles]]:
    """Token ids of the conversation, which of them the assistant said, and the pictures in their order.

    Raises HerdError where the template refuses the messages.
    """
    tiles: list[Tiles] = []
    # A character for private use that no message holds.
    mark = next(chr(code) for code in range(0xE000, 0xF900) if f"\\u{code:04x}" not in ascii(messages))
    plain = [_as_text(tokenizer, processor, message, mark, tiles) for message in messages]
    text = _rendered(tokenizer, plain, add_generation_prompt=add_generation_prompt)
    ids = _encode(tokenizer, text, mark)
    learnt = [False] * len(ids)
    # Training renders whole conversations: what the assistant adds to what came before is its own.
    for count, message in enumerate([] if add_generation_prompt else plain):
        if message["role"] == "assistant":
            before = _encode(tokenizer, _rendered(tokenizer, plain[:count], add_generation_prompt=True), mark)
            after = _encode(tokenizer, _rendered(tokenizer, plain[: count + 1], add_generation_prompt=False), mark)
            if ids[: len(before)] != before or ids[: len(after)] != after:
                raise HerdError("the chat template rewrites earlier messages: what the assistant said cannot be told")
            learnt[len(before) : len(after)] = [True] * (len(after) - len(before))
    return ids, learnt, tiles


def _as_text(
    tokenizer: "Tokenizer", processor: ImageProcessor, message: dict[str, Any], mark: str, tiles: list[Tiles]
) -> dict[str, str]:
    """The message with its content as one text: pictures as their tokens, spelt control tokens broken."""
    spelt = re.compile(f"(?=({'|'.join(map(re.escape, tokenizer.special))}))(.)", re.DOTALL)

    def picture(item: Any, max_tiles: int | None = None) -> str:
        cut = item if isinstance(item, Tiles) else processor.tiles(item, max_tiles=max_tiles)
        tiles.append(cut)
        return "".join(processor.tokens(cut))

    content = message["content"]
    parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = ""
    for part in parts:
        match part["type"]:
            case "text":
                text += spelt.sub(rf"\2{mark}", part["text"])
            case "image":
                text += picture(part["image"], part.get("max_tiles"))
            case "video":
                text += "".join(
                    f"{seconds:.1f}s{picture(frame, part.get('max_tiles'))}" for seconds, frame in part["frames"]
                )
            case kind:
                raise HerdError(f"content part of type {kind!r} is not one of text, image, video")
    return {"role": message["role"], "content": text}


def _rendered(tokenizer: "Tokenizer", messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    # Imported here: own models never need it.
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    world.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    world.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
    assert tokenizer.template is not None
    try:
        template = world.from_string(tokenizer.template)
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **tokenizer.names)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise HerdError(f"the model's chat template refuses this conversation: {error}") from None


def _encode(tokenizer: "Tokenizer", text: str, mark: str) -> list[int]:
    """Ids of a rendered text: its control tokens as such, what is broken by the mark as the text that was meant."""
    if mark not in text:
        return tokenizer.encode_marked(text)
    ids: list[int] = []
    longest_first = sorted(tokenizer.special, key=len, reverse=True)
    for part in re.split(f"({'|'.join(map(re.escape, longest_first))})(?!{mark})", text):
        ids += [tokenizer.special[part]] if part in tokenizer.special else tokenizer.encode(part.replace(mark, ""))
    return ids
