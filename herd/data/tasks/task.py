"""Tasks: prompts, and what an answer to one is worth. One task serves training data, reward and evaluation.

Here is what a task is; `gym` makes tasks from reasoning-gym's generators, `chats` from the rows of a data folder. Tasks
in cells, which have prompts without end, are `digits` and its neighbours.
"""

import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeVar

from herd.errors import HerdError, unknown

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What an answer is worth."""

    score: float
    """From 0 to 1, which is right."""
    reason: str
    parts: Mapping[str, float] = field(default_factory=dict)
    """What the score is made of, by name, where it is of several parts."""

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


class CellTask(Protocol):
    """Prompts without end, in cells of one kind and difficulty, with a grader.

    A prompt is a function of the task's seed, its cell and its index. Whether its content is of training or held out is
    a function of the content alone (`is_heldout`), so none is in both whatever the seeds.
    """

    @property
    def cells(self) -> Sequence[str]:
        """Names without spaces."""

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        """The messages of prompt `index` of `cell`. The same prompt may come again."""

    def solution(self, cell: str, index: int) -> str:
        """A right answer, for demonstrations; there may be others."""

    def grade(self, messages: Messages, answer: str) -> Grade:
        """As `Task.grade`: total, and a function of its arguments alone."""


def is_heldout(content: str) -> bool:
    """Whether what a question is about (a list of digits, a word) is of the fifth that is held out: by its hash."""
    return hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=8).digest()[0] % 5 == 0


def of_split(drawn: Iterable[T], heldout: bool | None, content: Callable[[T], str] = str) -> T:
    """The first of what is `drawn` whose content is held out or not, as asked; None: whatever it is.

    Raises HerdError where there is none among many, as of a kind that has few contents in all.
    """
    for one in islice(drawn, MOST_DRAWN):
        if heldout in (None, is_heldout(content(one))):
            return one
    raise HerdError(
        f"of the questions drawn none is {'held out' if heldout else 'of training'}: there are too few different ones, "
        "ask for more difficult ones"
    )


MOST_DRAWN = 2000
UNKNOWN = Grade(score=0.0, reason="not a prompt of this task")


def prompt_key(messages: Messages) -> str:
    """What tells prompts apart: the messages before the assistant's first."""
    roles = [message.get("role") for message in messages]
    count = roles.index("assistant") if "assistant" in roles else len(roles)
    return json.dumps([dict(message) for message in messages[:count]], sort_keys=True, default=repr)


def prompt_keys(messages: Messages) -> tuple[str, str]:
    """The key of a prompt, and of the same without its first system message, which RL may have put before it."""
    is_system = bool(messages) and messages[0].get("role") == "system"
    return prompt_key(messages), prompt_key(messages[1:] if is_system else messages)


def asked(messages: Messages) -> str:
    """The text of the user's first message; "" where there is none, or it is in parts."""
    found = next((message.get("content") for message in messages if message.get("role") == "user"), None)
    return found if isinstance(found, str) else ""


def matching(cells: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """The cells whose names match one of the patterns, such as `sort-*`; all where there is none.

    Raises HerdError for a pattern that none matches.
    """
    for pattern in patterns:
        if not fnmatch.filter(cells, pattern):
            raise unknown("cell", pattern, cells)
    return tuple(cell for cell in cells if not patterns or any(fnmatch.fnmatchcase(cell, one) for one in patterns))
