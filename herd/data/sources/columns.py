"""What rows are, by the names of their columns."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from herd.data.sources.media_names import media_kind
from herd.errors import HerdError

TEXT = ("text", "content", "body", "document", "article", "page_content", "raw_content", "markdown", "passage", "story")
"""Columns that hold a document, the first that is there."""
CHATS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "pair": ("prompt", "completion"),
}
"""The columns that each chat format needs."""
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "response"), ("input", "output"))
"""Columns of a question and its answer, to train on."""
ANSWERED = (
    ("prompt", "answer"), ("question", "answer"), ("problem", "answer"), ("problem", "solution"),
    ("prompt", "ground_truth"), ("prompt", "solution"), ("question", "solution"),
)  # fmt: skip
"""Columns of a question and what an answer is graded by."""
RULES = ("rule", "verifier", "rules", "verification_info", "reward_model")
"""Columns that say how an answer is graded."""
LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue", "dialogs", "chat", "turns")
"""Columns that may hold the turns of a chat."""


IMAGE_COLUMNS = ("image", "image_path", "file_name", "img", "picture", "path", "jpg", "png", "webp")
VIDEO_COLUMNS = ("video", "video_path", "file_name", "clip", "path", "mp4", "webm")
CAPTION_COLUMNS = ("caption", "text", "description", "alt", "title", "captions", "txt")
"""Columns with a picture or a video, its bytes or its path, and with what it shows."""


def media_rows(values: Mapping[str, Any]) -> str:
    """`images` or `videos` where a row has one with a caption; empty if it has none."""
    if not any(isinstance(values.get(name), (str, list)) and values[name] for name in CAPTION_COLUMNS):
        return ""
    for name in (*IMAGE_COLUMNS, *VIDEO_COLUMNS):
        value = values.get(name)
        if isinstance(value, Mapping) and value.keys() & {"bytes", "path"}:
            return media_kind(str(value.get("path"))) or ("videos" if name in VIDEO_COLUMNS else "images")
        if isinstance(value, str) and media_kind(value):
            return media_kind(value)
        if isinstance(value, bytes):
            return "images" if name in IMAGE_COLUMNS else "videos"
    return ""


def text_column(values: Mapping[str, Any]) -> str | None:
    """The column with the document: of a known name, else the only one that holds words."""
    known = [name for name in TEXT if name in values]
    for name in known:
        if isinstance(values[name], str):
            return name
    for name in known:
        if values[name] is None:  # of this row only
            return name
    texts = [name for name, value in values.items() if isinstance(value, str) and " " in value.strip()]
    return texts[0] if len(texts) == 1 else None


def chat_format(values: Mapping[str, Any]) -> str | None:
    """The chat format of a row; None if it has none."""
    if any(_turns(values.get(name)) for name in LISTS):
        name = next(name for name in LISTS if _turns(values.get(name)))
        return "sharegpt" if "from" in values[name][0] else "messages"
    if isinstance(values.get("instruction"), str) and isinstance(values.get("output"), str):
        return "alpaca"
    return "pair" if pair_columns(values, PAIRS) else None


def turns_column(values: Mapping[str, Any]) -> str | None:
    """The column with the turns of a chat."""
    return next((name for name in LISTS if isinstance(values.get(name), list)), None)


def pair_columns(values: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Which of `pairs` a row has."""
    return next((pair for pair in pairs if values.get(pair[0]) and values.get(pair[1]) is not None), None)


def kind_of_rows(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """What a row is and in which form: `chats`, `sharegpt`; None if it is neither."""
    if {"chosen", "rejected"} <= values.keys():
        return "preferences", "chosen and rejected"
    if form := chat_format(values):
        return "chats", form
    if media := media_rows(values):
        return media, "rows with captions"
    answered = pair_columns(values, ANSWERED)
    if answered or ("prompt" in values and values.keys() & set(RULES)):
        return "prompts", " and ".join(answered or ("prompt", "rules"))
    if name := text_column(values):
        return "text", f"column {name}"
    return None


def _turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def no_columns(place: str, values: Mapping[str, Any], what: str, wanted: Iterable[str], fix: str) -> HerdError:
    """The error for rows without the columns that they need; it offers the nearest name."""
    near = [
        (name, match[0])
        for name in wanted
        if (match := difflib.get_close_matches(name, list(values), n=1, cutoff=0.75)) and match[0] != name
    ]
    hint = f"; did you mean {near[0][0]!r} by {near[0][1]!r}?" if near else ""
    found = ", ".join(map(str, values)) or "none"
    return HerdError(f"{place}: no {what} in the columns {found}{hint or '.'} {fix}")
