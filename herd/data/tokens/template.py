"""Messages to tokens by a folder's own chat template, for models that do not speak Llama 4's format.

The template (`chat_template.jinja`) is somebody else's program: it runs in jinja2's sandbox with what transformers 5
gives it (tags, filters, functions, variables), on a plain copy of the messages. The text of a message, a call or a tool
never becomes a control token: each place in it where one is spelt is broken by a mark, and the mark is taken out when
that text is encoded. Tools and calls go to templates that show them; which do is found by trying (`abilities`).
Left out: documents.
"""

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from herd.data.media.image import ImageProcessor, Tiles
from herd.errors import HerdError

if TYPE_CHECKING:
    from jinja2 import Template

    from herd.data.tokens.tokenizer import Tokenizer

REASONING = ("reasoning_content", "thinking", "reasoning")
"""What clients call an assistant's reasoning; templates read the first two."""
Span = tuple[int, int]
"""Begin and end of a part of a text, in characters."""


def render_template(
    tokenizer: "Tokenizer",
    processor: ImageProcessor,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool,
) -> tuple[list[int], list[bool], list[Tiles]]:
    """Token ids of the conversation, which of them the assistant said, and the pictures in their order.

    The content of each message is a list of parts, the arguments of its calls are dictionaries. Raises HerdError where
    the template refuses the messages or has no place for tools or calls, and, where a whole conversation is asked for,
    does not tell what the assistant said.
    """
    tiles: list[Tiles] = []
    # Characters for private use that nothing given holds.
    held = ascii((messages, tools))
    mark, *tags = [chr(code) for code in range(0xE000, 0xF900) if f"\\u{code:04x}" not in held][:3]
    chat = Conversation(tokenizer, mark, (tags[0], tags[1]))
    if tools and (reason := shows_tools(tokenizer)):
        raise HerdError(f"this model's own chat template has no place for tools ({reason}): leave them out")
    called = any(message.get("tool_calls") or ROLE.get(message["role"]) == "tool" for message in messages)
    form = call_form(tokenizer) if called else CallForm()
    if form is None:
        raise HerdError("this model's own chat template has no place for tool calls and their results: leave them out")
    plain = [chat.plain(message, form, processor, tiles) for message in messages]
    shown = [chat.guarded(tool) for tool in tools] or None
    text, spans = chat.text(plain, shown, add_generation_prompt=add_generation_prompt)
    if not add_generation_prompt:
        spans = spans or chat.said(plain, shown, text)
    ids, learnt = chat.encode(text, spans)
    return ids, learnt, tiles


ROLE = {"ipython": "tool", "tool": "tool"}
"""What templates call the roles that Llama 4 has another name for."""


@dataclass(frozen=True, kw_only=True)
class CallForm:
    """How a template takes a message of calls."""

    silent: Mapping[str, str | None] = field(default_factory=dict)
    """Its content where there are no words: no such key (so transformers 5), none, or an empty text."""
    as_text: bool = False
    """Its arguments as the text of JSON instead of a mapping."""


class Conversation:
    """One conversation's texts. `mark` breaks what spells a control token, `tags` stand around what is generated."""

    def __init__(self, tokenizer: "Tokenizer", mark: str, tags: tuple[str, str]) -> None:
        self.tokenizer, self.mark, self.tags = tokenizer, mark, tags
        longest_first = sorted(tokenizer.special, key=len, reverse=True)
        self._special = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._spelt = re.compile(f"(?=({self._special}))(.)", re.DOTALL)

    def guarded(self, value: Any) -> Any:
        """`value` in plain types, each control token in its texts broken."""
        match value:
            case str():
                return self._spelt.sub(rf"\2{self.mark}", value)
            case Mapping():
                return {self.guarded(key): self.guarded(item) for key, item in value.items()}
            case list() | tuple():
                return [self.guarded(item) for item in value]
        return value

    def plain(
        self, message: Mapping[str, Any], form: CallForm, processor: ImageProcessor, tiles: list[Tiles]
    ) -> dict[str, Any]:
        """The message as the template sees it: its content as one text, pictures as their tokens."""

        def picture(item: Any, max_tiles: int | None = None) -> str:
            cut = item if isinstance(item, Tiles) else processor.tiles(item, max_tiles=max_tiles)
            tiles.append(cut)
            return "".join(processor.tokens(cut))

        text = ""
        for part in message["content"]:
            match part["type"]:
                case "text":
                    text += self.guarded(part["text"])
                case "image":
                    text += picture(part["image"], part.get("max_tiles"))
                case "video":
                    limit = part.get("max_tiles")
                    text += "".join(f"{seconds:.1f}s{picture(frame, limit)}" for seconds, frame in part["frames"])
                case kind:
                    raise HerdError(f"content part of type {kind!r} is not one of text, image, video")
        role = message["role"]
        calls = message.get("tool_calls")
        made: dict[str, Any] = {"role": ROLE.get(role, role)}
        made |= form.silent if calls and not text else {"content": text}
        for key in ("name", "tool_call_id"):
            if message.get(key) is not None:
                made[key] = self.guarded(message[key])
        reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
        if reasoning is not None:
            made |= dict.fromkeys(REASONING[:2], self.guarded(reasoning))
        if calls:
            made["tool_calls"] = [self._call(call, form) for call in calls]
        return made

    def _call(self, call: Mapping[str, Any], form: CallForm) -> dict[str, Any]:
        function = self.guarded(call["function"])
        if form.as_text:
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        named = {"id": self.guarded(call["id"])} if call.get("id") else {}
        return {**named, "type": "function", "function": function}

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool,
    ) -> tuple[str, list[Span]]:
        """The rendered text, and the parts of it that stand between `{% generation %}` and its end."""
        from jinja2 import TemplateError

        source = self.tokenizer.template
        assert source is not None
        try:
            rendered = compiled(source).render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                herd_tags=self.tags,
                herd_mark=self.mark,
                **self.tokenizer.names,
            )
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise HerdError(f"the model's chat template refuses this conversation: {error}") from None
        first, *rest = re.split(f"[{''.join(self.tags)}]", rendered)
        borders, text = [], first
        for piece in rest:
            borders.append(len(text))
            text += piece
        return text, list(zip(borders[::2], borders[1::2], strict=True))

    def said(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, text: str
    ) -> list[Span]:
        """What the assistant said in `text`, where the template does not tag it: it begins where the prompt for it
        ends, and ends with the token that ends a turn, or where nothing more is rendered."""
        ends = re.compile("|".join(map(re.escape, self.tokenizer.stop_tokens)) or "(?!)")
        spans = []
        for count, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.text(messages[:count], tools, add_generation_prompt=True)[0]
            after = self.text(messages[: count + 1], tools, add_generation_prompt=False)[0]
            begin, bound = len(before), len(text)
            if count + 1 < len(messages):  # up to where the next message's own text begins
                following = {"role": messages[count + 1]["role"], "content": self.mark * 2}
                other, _ = self.text([*messages[: count + 1], following], tools, add_generation_prompt=False)
                bound = common(text, other)
            end = ends.search(text, begin, bound)
            if not text.startswith(before) or (end is None and not text.startswith(after)):
                raise HerdError(
                    "the model's chat template renders a conversation in another way than its parts, so that what the "
                    "assistant said cannot be found: put {% generation %} and {% endgeneration %} around it there"
                )
            spans.append((begin, end.end() if end else len(after)))
        return spans

    def encode(self, text: str, spans: Sequence[Span] = ()) -> tuple[list[int], list[bool]]:
        """Ids of a rendered text, its control tokens as such and what is broken by the mark as the text that was meant;
        and which of them begin in one of the spans."""
        inside = [any(begin <= at < end for begin, end in spans) for at in range(len(text) + 1)] if spans else None
        if self.mark not in text:
            ids, begins = self.tokenizer.encode_marked(text)
            return ids, [inside[at] if inside else False for at in begins]
        ids, learnt = [], []
        cuts = {0, len(text), *(at for span in spans for at in span)}
        for match in re.finditer(f"(?:{self._special})(?!{self.mark})", text):
            cuts |= {match.start(), match.end()}
        for begin, end in pairwise(sorted(cuts)):
            part = text[begin:end]
            known = self.tokenizer.special.get(part)
            more = [known] if known is not None else self.tokenizer.encode(part.replace(self.mark, ""))
            ids += more
            learnt += [inside[begin] if inside else False] * len(more)
        return ids, learnt


def common(one: str, other: str) -> int:
    """Characters that two texts have in common at their beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@lru_cache(maxsize=8)
def compiled(source: str) -> "Template":
    """A template in the world that transformers' `apply_chat_template` gives it."""
    # Imported here: own models never need it.
    from jinja2 import TemplateError, nodes, pass_context
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.runtime import Context
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`: the assistant's text."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_tagged", [nodes.ContextReference()])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _tagged(self, context: Context, caller: Callable[[], str]) -> str:
            begin, end = context["herd_tags"]
            return f"{begin}{caller()}{end}"

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    @pass_context
    def tojson(
        context: Context,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        written = json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        mark: str = context["herd_mark"]
        return written.replace(ascii(mark)[1:-1], mark) if ensure_ascii else written

    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    world.filters["tojson"] = tojson
    world.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
    try:
        return world.from_string(source)
    except (TemplateError, RecursionError) as error:
        raise HerdError(f"the model's chat template refuses every conversation: {error}") from None


def spoken(role: str, text: str) -> dict[str, Any]:
    """A message of words."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


QUESTION = spoken("user", "how warm")
WEATHER = {
    "type": "function",
    "function": {
        "name": "herd_weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"town": {"type": "string", "description": "A town"}}},
    },
}


def shows_tools(tokenizer: "Tokenizer") -> str | None:
    """Why the template does not show the tools that it is given; None where it does."""
    try:
        text, _ = Conversation(tokenizer, "\ue000", ("\ue001", "\ue002")).text(
            [{"role": "user", "content": "how warm"}], [WEATHER], add_generation_prompt=True
        )
    except HerdError as error:
        return str(error)
    return None if "herd_weather" in text else "it does not show them"


def call_form(tokenizer: "Tokenizer") -> CallForm | None:
    """How the template takes calls and their results: in the first form of several in which it shows them."""
    call = {"id": "a1b2c3d4e", "function": {"name": "herd_weather", "arguments": {"town": "herd_oslo"}}}
    messages = [
        QUESTION,
        {"role": "assistant", "content": [], "tool_calls": [call]},
        {**spoken("tool", "herd_cold"), "tool_call_id": "a1b2c3d4e", "name": "herd_weather"},
    ]
    chat = Conversation(tokenizer, "\ue000", ("\ue001", "\ue002"))
    silences: list[dict[str, str | None]] = [{}, {"content": None}, {"content": ""}]
    for as_text in (False, True):
        for silent in silences:
            form = CallForm(silent=silent, as_text=as_text)
            plain = [chat.plain(message, form, ImageProcessor(None), []) for message in messages]
            try:
                text, _ = chat.text(plain, add_generation_prompt=True)
            except HerdError:
                continue
            if all(word in text for word in ("herd_weather", "herd_oslo", "herd_cold")):
                return form
    return None


def limits(tokenizer: "Tokenizer") -> list[str]:
    """What the template cannot do, found by trying, a line each."""
    answer = spoken("assistant", "cold")

    def tried(*messages: Mapping[str, Any], add_generation_prompt: bool) -> str | None:
        try:
            render_template(tokenizer, ImageProcessor(None), messages, add_generation_prompt=add_generation_prompt)
        except HerdError as error:
            return str(error)
        return None

    if reason := tried(QUESTION, add_generation_prompt=True):
        return [f"any conversation ({reason})"]
    found = {
        "a system message": tried(spoken("system", "brief"), QUESTION, add_generation_prompt=True),
        "an earlier answer": tried(QUESTION, answer, QUESTION, add_generation_prompt=True),
        "fine-tuning": tried(QUESTION, answer, QUESTION, answer, add_generation_prompt=False),
        "tools": shows_tools(tokenizer),
        "tool calls in the history": None if call_form(tokenizer) else "it does not show them",
    }
    return [f"{what} ({reason})" for what, reason in found.items() if reason]
