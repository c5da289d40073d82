"""The rows of chats.parquet, and the task that those with a right answer make."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from herd.data.tasks.gym import Gym, Problem
from herd.data.tasks.made import MADE
from herd.data.tasks.task import UNKNOWN, Grade, Messages, prompt_key, prompt_keys
from herd.data.text.spelling import normalise
from herd.errors import HerdError

SIGNED_KINDS = ("arithmetic", "task")
"""Kinds in whose answers punctuation counts, as it carries the sign."""
_NUMBER = re.compile(r"[-+−]?\d[\d.,/]*%?")
"""Right answers in which it counts too, whatever the kind."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One conversation."""

    id: str
    split: str
    """`train` or `heldout`."""
    kind: str
    language: str
    messages: list[dict[str, Any]]
    answer: str
    """A right answer to the question; empty in free talk."""
    verifier: str = ""
    """What grades answers, as JSON: a `Problem`, or `{"task": name}` of herd.data.tasks.made; empty where they are
    compared with `answer`."""

    @property
    def question(self) -> list[dict[str, Any]]:
        """The messages up to the answer: a last message of the assistant is left to the model."""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages

    def compared(self, answer: str) -> str:
        """The form in which an answer is compared."""
        if self.kind in SIGNED_KINDS:
            return " ".join(answer.casefold().split())
        if _NUMBER.fullmatch(self.answer):
            return answer.strip().removesuffix(".")
        return normalise(answer, self.language)


def made_task(verifier: str) -> str:
    """The name of the task that a verifier names; empty where it is none."""
    return next((name for name in MADE if verifier == verifier_of(name)), "")


def verifier_of(name: str) -> str:
    """How the task of this name stands in the column."""
    return json.dumps({"task": name})


class ChatTask:
    """The questions of chats. An answer is right by the verifier of the generator that made the question, else when it
    equals `answer` in the form in which answers of the kind are compared."""

    def __init__(self, chats: Sequence[Chat]) -> None:
        self.chats, self._gym = chats, Gym()

    def __len__(self) -> int:
        return len(self.chats)

    def prompt(self, i: int) -> list[dict[str, Any]]:
        return self.chats[i].question

    def solution(self, i: int) -> str:
        return self.chats[i].answer

    def grade(self, messages: Messages, answer: str) -> Grade:
        found = next((self._by_prompt[key] for key in prompt_keys(messages) if key in self._by_prompt), ())
        grades = [self._grade(chat, answer) for chat in found]
        return max(grades, key=lambda grade: grade.score, default=UNKNOWN)

    @cached_property
    def _by_prompt(self) -> dict[str, list[Chat]]:
        """One question may be there several times, with other right answers."""
        found: dict[str, list[Chat]] = {}
        for chat in self.chats:
            found.setdefault(prompt_key(chat.question), []).append(chat)
        return found

    def _grade(self, chat: Chat, answer: str) -> Grade:
        if not chat.verifier:
            right = chat.compared(answer) == chat.compared(chat.answer)
            return Grade(score=float(right), reason="right" if right else f"{chat.answer} is right")
        if name := made_task(chat.verifier):
            return MADE[name](0).grade(chat.messages, answer)
        problem = Problem.from_json(chat.verifier)
        if str(self._gym.entry(problem)["answer"]) != chat.answer:
            raise HerdError(
                f"{problem.dataset} makes another problem than it made for {chat.id}: write the data folder again with "
                "the version of reasoning-gym that is in the cache"
            )
        return self._gym.grade(problem, answer)
