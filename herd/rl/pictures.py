"""Environments that ask about the pictures and clips of a data folder: opened for the model, ids for the grader."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.data.loading.chat_media import ChatMedia
from herd.data.tasks.task import Messages
from herd.rl.environment import Environment, Reaction, Wrapped

OPENED = ("image", "frames")
"""What a part has once it is opened."""


class PictureEnvironment(Wrapped):
    """An environment whose prompts name pictures and clips by their ids."""

    def __init__(self, environment: Environment, media: ChatMedia) -> None:
        super().__init__(environment)
        self._media = media

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        asked = self.environment.prompt(cell, index)
        return [
            {**message, "content": _joined(message["content"], shown["content"])}
            for message, shown in zip(asked, self._media.open(asked), strict=True)
        ]

    def respond(self, messages: Messages, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        return self.environment.respond([_named(one) for one in messages], answer, seed=seed)


def open_pictures(environment: Environment, data: Path) -> PictureEnvironment:
    """An environment with what its prompts show, of a data folder."""
    return PictureEnvironment(environment, ChatMedia.read(data))


def _joined(content: Any, shown: Any) -> Any:
    """Parts with their ids and what was opened."""
    if not isinstance(content, list):
        return content
    return [{**part, **other} for part, other in zip(content, shown, strict=True)]


def _named(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what was opened."""
    content = message.get("content")
    if isinstance(content, list):
        content = [{name: value for name, value in part.items() if name not in OPENED} for part in content]
    return {**message, "content": content}
