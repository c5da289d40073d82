"""Environments: what a rollout is asked, and what follows its answers. No torch.

An environment answers each message of the assistant with a reward, which ends the conversation, or with messages, after
which the model speaks again. A task of herd.data.tasks is an environment of one turn. Time limits and exceptions are
the caller's affair.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from herd.core.streams import stream
from herd.data.sources.module import load_object
from herd.data.tasks.task import CellTask, Messages, matching
from herd.errors import HerdError, unknown


@dataclass(frozen=True, kw_only=True)
class Reaction:
    """What follows an answer."""

    reward: float | None
    """A finite number, of tasks from 0 to 1; None: the conversation goes on."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """What the environment says next (role `tool` or `user`), where it goes on."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What the reward is made of, by name."""


class Environment(Protocol):
    """Prompts, and what follows the answers to them."""

    @property
    def cells(self) -> Sequence[str]:
        """The kinds of its prompts, each of one difficulty; names without spaces."""

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """OpenAI's objects of the tools that the model may call; () if none."""

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        """The messages of prompt `index` of `cell`: a function of the environment's seed and these two. Pictures are
        opened, as herd.data.tokens.chat takes them; keys beside role and content are the environment's own."""

    def respond(self, messages: Messages, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        """What follows the assistant's message `answer` to `messages`, which are all before it.

        `answer` has `content`, `tool_calls` if there are any, and `finish_reason` (`stop` or `length`; `stop` if it is
        not given). `seed` is the rollout's own, for environments that draw: the reaction is a function of the three.
        Total on any string. It may block: it is called in a thread, and several may run at once.
        """


class Demonstrated(Environment, Protocol):
    """An environment that can show how it is done."""

    def demonstration(self, cell: str, index: int) -> list[dict[str, Any]]:
        """The messages that follow prompt `index` of `cell` in a conversation that is worth 1: the assistant's, and
        between them what the environment says. Raises HerdError where it has none to show."""


class TaskEnvironment:
    """A task as an environment of one turn. An answer that was cut off at its limit is worth 0."""

    tools: Sequence[Mapping[str, Any]] = ()
    single_turn = True

    def __init__(self, task: CellTask) -> None:
        self.task = task

    @property
    def cells(self) -> Sequence[str]:
        return self.task.cells

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return self.task.prompt(cell, index)

    def respond(self, messages: Messages, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        grade = self.task.grade(messages, text_of(answer))
        is_whole = not was_cut(answer)
        parts = {**grade.parts, "score": grade.score, "ended": float(is_whole)}
        return Reaction(reward=grade.score if is_whole else 0.0, parts=parts)

    def demonstration(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": self.task.solution(cell, index)}]


class Wrapped:
    """An environment as it is, for those that change a part of another."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    @property
    def cells(self) -> Sequence[str]:
        return self.environment.cells

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return self.environment.tools

    @property
    def single_turn(self) -> bool:
        return is_single_turn(self.environment)

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return self.environment.prompt(cell, index)

    def respond(self, messages: Messages, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        return self.environment.respond(messages, answer, seed=seed)


class SomeCells(Wrapped):
    """An environment without some of its cells."""

    def __init__(self, environment: Environment, patterns: Sequence[str]) -> None:
        """Raises HerdError for a pattern that no cell matches."""
        super().__init__(environment)
        self._chosen = matching(environment.cells, patterns)

    @property
    def cells(self) -> Sequence[str]:
        return self._chosen


class Delay(Wrapped):
    """An environment that takes its time: a log-normal wait (sigma 1) before each reaction.

    The wait is a function of `seed`, the rollout's seed, the conversation and the answer, so a run that is repeated
    waits as long. Its median is `seconds`, and grows by the share `growth` with each character of the answer.
    """

    def __init__(
        self,
        environment: Environment,
        seconds: float,
        seed: int,
        *,
        growth: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(environment)
        self.seconds, self.seed, self.growth = seconds, seed, growth
        self._sleep = sleep

    def wait_s(self, messages: Messages, answer: Mapping[str, Any], *, seed: int = 0) -> float:
        """Seconds that the reaction to this answer is delayed."""
        text = text_of(answer)
        place = repr(([one.get("content") for one in messages], text, answer.get("tool_calls")))
        drawn = float(stream(self.seed, "delay", seed, place).standard_normal())
        return self.seconds * (1 + self.growth * len(text)) * math.exp(drawn)

    def respond(self, messages: Messages, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        self._sleep(self.wait_s(messages, answer, seed=seed))
        return self.environment.respond(messages, answer, seed=seed)


def is_single_turn(environment: Environment) -> bool:
    """Whether its first reaction is always a reward: that of a class which does not say so may be another message."""
    return bool(getattr(environment, "single_turn", False))


def text_of(answer: Mapping[str, Any]) -> str:
    """The text of an assistant's message."""
    content = answer.get("content")
    return content if isinstance(content, str) else ""


def was_cut(answer: Mapping[str, Any]) -> bool:
    """Whether the answer was ended by its limit."""
    return answer.get("finish_reason") == "length"


def open_environment(spec: str, data: Path | None, seed: int, *, heldout: bool = False) -> Environment:
    """The environment that is called `spec`: `calculator`, a task of herd.data.tasks.known or a JSONL file of prompts,
    `openenv/URL`, `verifiers/NAME`, `guard/FOLDER`, or the user's `module:name`, called with `seed` and `heldout`.
    Behind any of them `[sort-*,copy-3]` leaves only the cells that match.

    `data` is the data folder that it may read. Prompts that are held out are never among the others.
    Raises HerdError where there is none.
    """
    if found := re.fullmatch(r"(.+)\[([^\[\]]+)\]", spec):
        return SomeCells(open_environment(found[1], data, seed, heldout=heldout), found[2].split(","))
    from herd.data.tasks.known import NAMES, is_file, open_task  # with the readers of all kinds of data, and torch

    if spec in OTHERS:
        made: Environment = load_object(OTHERS[spec])(seed=seed, heldout=heldout)
        return made
    adapter, _, place = spec.partition("/")
    if adapter in ADAPTERS and place:
        made = load_object(ADAPTERS[adapter])(place, seed=seed, heldout=heldout)
        return made
    if ":" not in spec or is_file(spec):
        if spec not in NAMES and "/" not in spec and not is_file(spec):
            raise unknown("environment", spec, [*NAMES, *OTHERS])
        task = TaskEnvironment(open_task(spec, data, seed, heldout=heldout))
        if spec not in SHOWN or data is None:
            return task
        shown: Environment = load_object("herd.rl.pictures:open_pictures")(task, data)
        return shown
    made = load_object(spec)(seed=seed, heldout=heldout)
    if missing := [name for name in ("cells", "tools", "prompt", "respond") if not hasattr(made, name)]:
        raise HerdError(f"{spec} gives {type(made).__name__}, which has no {missing[0]}: see docs/environments.md")
    return made


SHOWN = ("names", "chats")
"""Tasks that may ask about pictures."""
OTHERS = {"calculator": "herd.rl.calculator:CalculatorEnvironment"}
"""Environments that are no tasks, by name."""
ADAPTERS = {
    "openenv": "herd.rl.adapters.openenv:OpenEnvironment",
    "verifiers": "herd.rl.adapters.verifiers:TasksetEnvironment",
    "guard": "herd.guard.reward:GuardedEnvironment",
}
"""Those that need a place, `name/place`: of other frameworks, and of a guard's folder."""
