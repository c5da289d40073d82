"""Task sets of verifiers as environments of one turn: `verifiers/gsm8k`; needs `pip install 'herd-lm[verifiers]'` and
the package of the task set.

An answer is scored as verifiers 0.4 does it, by the rewards and judges of its task on a trace of the conversation. Left
out, and refused when a task set is opened: tools, containers, and rewards that need the runtime of a harness. The first
MOST tasks are read; a fifth of them is held out by a hash of their prompt.
"""

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from herd.data.tasks.rows import Shuffled
from herd.data.tasks.task import Messages, is_heldout, prompt_key
from herd.errors import HerdError
from herd.rl.environment import Reaction, text_of, was_cut

MOST = 100_000
CELL = "task"


class TasksetEnvironment:
    """The tasks of one task set."""

    tools: Sequence[Mapping[str, Any]] = ()

    def __init__(self, name: str, *, seed: int, heldout: bool = False) -> None:
        """Raises HerdError where the package or the task set is not there, or a task needs more than an answer."""
        try:
            import verifiers.v1 as package
            from verifiers.v1.utils.generic import concrete_type
            from verifiers.v1.utils.loaders import taskset_class
        except ImportError as error:
            raise HerdError(f"verifiers/{name} needs verifiers ({error}): pip install 'herd-lm[verifiers]'") from None
        self._package = package
        try:
            found = taskset_class(name)
            config = concrete_type(found, package.TasksetConfig) or package.TasksetConfig
            self._tasks = list(islice(found(config(id=name)), MOST))
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise HerdError(f"verifiers/{name}: the task set cannot be opened ({error})") from None
        rows = []
        for place, task in enumerate(self._tasks):
            _check(task, name)
            if is_heldout(prompt_key(self._messages(task))) == heldout:
                rows.append(place)
        self._shuffled = Shuffled(seed, {CELL: rows}, f"none of the {len(self._tasks)} tasks of {name} is of the split")

    @property
    def cells(self) -> Sequence[str]:
        return self._shuffled.cells

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        place = self._shuffled.row(cell, index)
        *before, last = self._messages(self._tasks[place])
        return [*before, {**last, "task": place}]

    def respond(self, messages: Messages, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        place = next((one["task"] for one in messages if "task" in one), None)
        if place is None:
            raise HerdError("the conversation does not begin with a prompt of this task set")
        task, text = self._tasks[place], text_of(answer)
        trace = self._trace(task, text)
        asyncio.run(task.score(trace))
        parts = {name: reward.value for name, reward in trace.rewards.items() if reward is not None}
        ended = not was_cut(answer)
        return Reaction(reward=trace.reward if ended else 0.0, parts={**parts, "ended": float(ended)})

    def _messages(self, task: Any) -> list[dict[str, Any]]:
        asked = task.data.prompt
        said = [{"role": "user", "content": asked}] if isinstance(asked, str) else [_plain(one) for one in asked]
        system = task.data.system_prompt
        return [{"role": "system", "content": system}, *said] if system else said

    def _trace(self, task: Any, text: str) -> Any:
        package = self._package
        said = [*self._messages(task), {"role": "assistant", "content": text}]
        kinds = {"system": package.SystemMessage, "user": package.UserMessage, "assistant": package.AssistantMessage}
        nodes = [
            package.MessageNode(
                message=kinds[one["role"]](content=one["content"]),
                parent=place - 1 if place else None,
                sampled=place == len(said) - 1,
            )
            for place, one in enumerate(said)
        ]
        return package.Trace(
            task=package.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
            agent=package.AgentInfo(config=package.AgentConfig()),
            nodes=nodes,
            is_completed=True,
            ok=True,
        )


def _plain(message: Any) -> dict[str, Any]:
    """A message as a dictionary. Raises HerdError where it is not of text alone."""
    role, content = message.role, message.content
    if role not in {"system", "user", "assistant"} or not isinstance(content, str):
        raise HerdError(f"a prompt has a message of role {role} that is no text: such task sets are not read")
    return {"role": role, "content": content}


def _check(task: Any, name: str) -> None:
    """Raise HerdError where an answer alone is not enough."""
    needs = "a prompt" if task.data.prompt is None else ""
    needs = needs or ("tools" if task.toolsets(task.config) else "a container" if task.NEEDS_CONTAINER else "")
    signals = [*task.hooks("reward"), *(judge.score for judge in task.plugged_judges())]
    for one in signals:
        parameter = inspect.signature(one).parameters.get("runtime")
        if parameter is not None and parameter.default is inspect.Parameter.empty:
            needs = needs or "the runtime of a harness"
    if needs or not signals:
        raise HerdError(
            f"verifiers/{name}: its tasks need {needs or 'rewards'}, and only answers to prompts are scored"
        )
