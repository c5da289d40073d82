"""What the messages of a request are made of: text, pictures, videos, calls of tools and their results."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from herd.serve.refusal import Object, missing_field

CACHING = frozenset({"cache_control", "prompt_cache_breakpoint"})
"""Hints of hosted services on what to keep; here the engine decides."""


def _encodable(text: str) -> str:
    # JSON can write half of a surrogate pair, which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "not_unicode", "the text is not Unicode at character {at}: half of a surrogate pair", {"at": error.start}
        ) from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class TextPart(Object):
    ignored = CACHING

    type: Literal["text"]
    text: Text


class RefusalPart(Object):
    """An assistant's text where it would not answer."""

    type: Literal["refusal"]
    refusal: Text


class ImageUrl(Object):
    url: str
    """`data:image/png;base64,…`, or an address of a host that the operator has named (herd.serve.pictures)."""
    detail: Literal["auto", "low", "high", "original"] | None = None
    """low: one tile; else as many as the model takes."""


class ImagePart(Object):
    ignored = CACHING

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Object):
    url: str
    """`data:video/mp4;base64,…`; nothing is fetched."""


class VideoPart(Object):
    ignored = CACHING

    type: Literal["video_url"]
    video_url: VideoUrl


def kind_of(value: Any) -> str:
    """The tag of a union of a text and something else."""
    return "<text>" if isinstance(value, str) else "<list>"


def type_tag(value: Any) -> str | None:
    """The tag by which a part's `type` chooses its schema; None where it has none."""
    return f"<{value.get('type')}>" if isinstance(value, dict) else None


# Tags are part of an error's location; by the brackets `_param` distinguishes them from fields.
Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[VideoPart, Tag("<video_url>")],
    Discriminator(
        type_tag,
        custom_error_type="part_type",
        custom_error_message="a part is an object of type 'text', 'image_url', 'video_url' or 'refusal'",
    ),
]
Content = Annotated[Annotated[Text, Tag("<text>")] | Annotated[list[Part], Tag("<list>")], Discriminator(kind_of)]
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class CalledFunction(Object):
    name: ToolName
    arguments: Text
    """A JSON object as text."""


class ToolCall(Object):
    ignored = frozenset({"index"})  # of a stream, which clients keep

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Object):
    # The format of the model has no names, and an assistant's reasoning is not repeated.
    ignored = frozenset({"name", "annotations", "cache_control", "reasoning", "reasoning_content"})
    unsupported: ClassVar = {"audio": (), "function_call": ()}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    refusal: Text | None = None
    """An assistant's, in place of its content."""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Message":
        if not self.content and self.content != "" and self.role not in {"assistant", "tool"}:
            raise missing_field("content", "is missing")
        for name in ("tool_calls", "refusal"):
            if getattr(self, name) and self.role != "assistant":
                raise missing_field(name, "is only for the role 'assistant'")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise missing_field("tool_call_id", "is missing" if self.role == "tool" else "is only for the role 'tool'")
        return self
