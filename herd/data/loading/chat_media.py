"""The pictures and clips that the chats of a data folder name by their ids, opened."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from PIL.Image import Image

from herd.data.loading import tables
from herd.data.loading.tables import Clip, Picture
from herd.data.media.image import read_picture

DECODED = 256
"""Pictures that are kept decoded."""


class ChatMedia:
    """Opens the messages of chats; of the pictures only `png` is used."""

    def __init__(self, pictures: Mapping[str, Picture], clips: Mapping[str, Clip]) -> None:
        self._clips = clips

        @lru_cache(maxsize=DECODED)
        def decoded(name: str) -> Image:
            return read_picture(pictures[name].png)

        self._decoded = decoded

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Those of a data folder, which may have none."""

        def rows(name: str, columns: list[str]) -> list[dict[str, Any]]:
            return tables.read(folder, name, columns) if tables.has(folder, name) else []

        pictures = [Picture(**row) for row in rows("pictures", ["id", "split", "png"])]
        clips = [Clip(**row) for row in rows("clips", ["id", "frames", "seconds"])]
        return cls({one.id: one for one in pictures}, {one.id: one for one in clips})

    def open(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages with their pictures and clips as herd.data.tokens.chat takes them."""
        return [{**one, "content": self._content(one.get("content"))} for one in messages]

    def _content(self, content: str | list[dict[str, Any]] | None) -> str | list[dict[str, Any]] | None:
        return [self._part(part) for part in content] if isinstance(content, list) else content

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "image":
            return {"type": "image", "image": self._decoded(part["picture"])}
        if part["type"] == "video":
            clip = self._clips[part["clip"]]
            frames = [(second, read_picture(frame)) for second, frame in zip(clip.seconds, clip.frames, strict=True)]
            return {"type": "video", "frames": frames}
        return part
