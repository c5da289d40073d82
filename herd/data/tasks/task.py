"""Tasks: prompts, and what an answer to one is worth. One task serves training data, reward and evaluation.

Here is what a task is; `gym` makes tasks from reasoning-gym's generators, `chats` from the rows of a data folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What an answer is worth."""

    score: float
    """From 0 to 1, which is right."""
    reason: str

    @property
    def right(self) -> bool:
        return self.score == 1


class Task(Protocol):
    """Prompts with a grader."""

    def __len__(self) -> int:
        """The number of prompts."""

    def prompt(self, i: int) -> list[dict[str, Any]]:
        """The messages of prompt `i`, pictures and clips by their ids in the data folder."""

    def solution(self, i: int) -> str:
        """A right answer to prompt `i`, for demonstrations; there may be others."""

    def grade(self, messages: Messages, answer: str) -> Grade:
        """Grade the answer that ends a conversation which begins with one of the prompts.

        A function of its arguments alone, and total: any string has a grade, of an unknown prompt it is 0.
        """


UNKNOWN = Grade(score=0.0, reason="not a prompt of this task")


def prompt_key(messages: Messages) -> str:
    """What tells prompts apart: the messages before the assistant's first."""
    roles = [message.get("role") for message in messages]
    count = roles.index("assistant") if "assistant" in roles else len(roles)
    return json.dumps([dict(message) for message in messages[:count]], sort_keys=True, default=repr)
