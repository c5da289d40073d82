"""One group: a prompt, answers by the engine, what the environment makes of each.

All answers are asked for at once and share the prompt; each goes on, with the environment and further turns, as soon
as it is there. The tokens are those that were drawn, never text that was tokenised again: what an environment says is
rendered by itself and appended.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import Any, TypeVar

import numpy as np

from herd.core.streams import seed_of
from herd.data.tasks.task import Messages
from herd.data.tokens.tool_calls import parse_answer
from herd.engine.engine import Engine
from herd.engine.model import Prompt
from herd.engine.reply import tool_call_objects
from herd.engine.request import CompletionOutput, EngineFault, make_output
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.model.moe import UNKNOWN
from herd.rl.environment import Environment, Reaction, is_single_turn
from herd.rl.journal import Admitted
from herd.rl.prompts import Prompts
from herd.rl.record import Group, Rollout, Span

T = TypeVar("T")


class Failure(Exception):
    """A group that cannot be had; the run goes on without it."""


class InvalidGroup(Failure):
    """A reward or a log-probability that cannot be."""


class EngineFailed(Failure):
    """The engine itself failed, each time."""


@dataclass(kw_only=True)
class Talk:
    """A conversation in the making, from its first drawn token on."""

    messages: list[Mapping[str, Any]]
    ids: list[int]
    drawn: list[bool]
    logprobs: list[float]
    versions: list[int]
    routes: np.ndarray | None = None
    """Of the prompt and `ids`, as far as the engine computed them."""

    def add(self, output: CompletionOutput) -> None:
        """Append what the model drew."""
        self.ids += output.token_ids
        self.drawn += [True] * len(output.token_ids)
        self.logprobs += [one.sampled_logprob for one in output.logprobs]
        self.versions += output.versions
        self.routes = output.routes  # of a further turn, those of all before it, too

    def hear(self, ids: Sequence[int]) -> None:
        """Append what the environment said."""
        self.ids += ids
        self.drawn += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.versions += [self.versions[-1]] * len(ids)

    def all_routes(self, num_prompt: int) -> np.ndarray | None:
        """Of the prompt and all `ids`."""
        if self.routes is None:
            return None
        routes = np.full((num_prompt + len(self.ids), self.routes.shape[1]), UNKNOWN, dtype=np.uint8)
        routes[: len(self.routes)] = self.routes
        return routes

    def spans(self) -> tuple[Span, ...]:
        spans, begin = [], 0
        for version, run in groupby(self.versions):
            spans.append(Span(begin=begin, version=version))
            begin += sum(1 for _ in run)
        return tuple(spans)


class Drawer:
    """Draws groups of `group_size` from an engine, at temperature 1 without filters: the recorded log-probability is
    that of the distribution drawn from, whatever that is."""

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        *,
        group_size: int,
        max_tokens: int,
        max_turns: int,
        timeout_s: float,
        attempts: int,
    ) -> None:
        self.engine, self.prompts = engine, prompts
        self.group_size, self.max_tokens, self.max_turns = group_size, max_tokens, max_turns
        self.timeout_s, self.attempts = timeout_s, attempts
        self._params = SamplingParams(temperature=1.0, max_tokens=max_tokens, logprobs=0)

    async def draw(self, admitted: Admitted, drawn: Callable[[], None]) -> Group:
        """The group of an admission; `drawn` is called once the engine is no longer needed for it. Raises Failure."""
        environment = self.prompts.environments[admitted.environment]
        prompt = self.prompts.prompt(admitted)
        left = self.group_size

        def member_drawn() -> None:
            nonlocal left
            left -= 1
            if not left:
                drawn()

        attempt = 0
        while True:
            try:
                return await self._group(admitted, environment, prompt, member_drawn, attempt)
            except EngineFault as error:
                attempt, left = attempt + 1, self.group_size
                if attempt == self.attempts:
                    raise EngineFailed(f"the engine failed {attempt} times: {error}") from None

    async def _group(
        self, admitted: Admitted, environment: Environment, prompt: Prompt, drawn: Callable[[], None], attempt: int
    ) -> Group:
        request = self.engine.submit(prompt, self._params, seed=admitted.seed, n=self.group_size)
        pieces: list[list[Any]] = [[] for _ in range(self.group_size)]
        tasks: dict[int, asyncio.Task[Rollout]] = {}
        try:
            async for piece in request:
                pieces[piece.index].append(piece)
                if piece.finish_reason is not None:
                    output = make_output(pieces[piece.index], request.seeds[piece.index])
                    member = self._member(admitted, environment, prompt, output, drawn, attempt)
                    tasks[piece.index] = asyncio.create_task(member)
            rollouts = tuple([await tasks[member] for member in range(self.group_size)])
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        return Group(
            ordinal=admitted.ordinal,
            environment=admitted.environment,
            cell=admitted.cell,
            index=admitted.index,
            rollouts=rollouts,
        )

    async def _member(
        self,
        admitted: Admitted,
        environment: Environment,
        prompt: Prompt,
        output: CompletionOutput,
        drawn: Callable[[], None],
        attempt: int,
    ) -> Rollout:
        talk = Talk(messages=[*self.prompts.messages(admitted)], ids=[], drawn=[], logprobs=[], versions=[])
        index, seed = output.index, output.seed  # later turns are requests of their own
        names = {tool["function"]["name"] for tool in environment.tools}
        reaction, env_s, several = Reaction(reward=None), 0.0, not is_single_turn(environment)
        if not several:
            drawn()
        for turn in range(self.max_turns):
            talk.add(output)
            answer = message_of(output, names)
            begin = time.monotonic()
            reaction, attempt = await self._respond(environment, talk.messages, answer, seed, attempt)
            env_s += time.monotonic() - begin
            if reaction.reward is not None or output.finish_reason == "length":
                break
            talk.messages += [answer, *reaction.messages]
            talk.hear(self._rendered(reaction.messages))
            room = self.max_tokens - len(talk.ids)
            if room < 1 or turn + 1 == self.max_turns:
                break
            more = Prompt(token_ids=[*prompt.token_ids, *talk.ids], tiles=prompt.tiles)
            params = SamplingParams(temperature=1.0, max_tokens=room, logprobs=0)
            [output] = await self.engine.submit(more, params, seed=seed_of(output.seed, "turn")).wait()
        if several:
            drawn()
        rollout = Rollout(
            member=index,
            seed=seed,
            attempt=attempt,
            prompt=np.array(prompt.token_ids, dtype=np.uint32),
            ids=np.array(talk.ids, dtype=np.uint32),
            drawn=np.array(talk.drawn, dtype=bool),
            logprobs=np.array(talk.logprobs, dtype=np.float32),
            spans=talk.spans(),
            finish=output.finish_reason,
            text=output.text,
            # Out of turns or of tokens: it was not done, and is worth nothing.
            reward=0.0 if reaction.reward is None else float(reaction.reward),
            parts=dict(reaction.parts),
            env_s=env_s,
            routes=talk.all_routes(len(prompt.token_ids)),
        )
        check(rollout)
        return rollout

    async def _respond(
        self, environment: Environment, messages: Messages, answer: Mapping[str, Any], seed: int, attempt: int
    ) -> tuple[Reaction, int]:
        """What the environment makes of an answer, and the attempt that gave it."""
        while True:
            try:
                return await in_thread(
                    lambda: environment.respond(messages, answer, seed=seed), self.timeout_s
                ), attempt
            except TimeoutError:
                why = f"took longer than env_timeout_s={self.timeout_s:g}"
            except Exception as error:
                why = f"raised {type(error).__name__}: {error}"
            attempt += 1
            if attempt >= self.attempts:
                raise Failure(f"the environment {why}, {attempt} times")

    def _rendered(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """What the environment says, as it follows the model's turn, up to where the model goes on."""
        model = self.engine.model
        if model.tokenizer.template is not None:
            raise HerdError("environments of several turns need Llama 4's chat format: this model has a template")
        return model.render([dict(one) for one in messages]).token_ids[1:]


def message_of(output: CompletionOutput, tools: set[str]) -> dict[str, Any]:
    """An answer as a message, with the calls that it makes of these tools."""
    parsed = parse_answer(output.text, tools) if tools else None
    message: dict[str, Any] = {"role": "assistant", "content": output.text, "finish_reason": output.finish_reason}
    if parsed is not None and parsed.calls:
        message |= {"content": parsed.text, "tool_calls": tool_call_objects(parsed.calls)}
    return message


def check(rollout: Rollout) -> None:
    """Raise InvalidGroup where a figure is none that it can be."""
    if not isfinite(rollout.reward):
        raise InvalidGroup(f"reward {rollout.reward}")
    if not np.isfinite(rollout.logprobs).all() or rollout.logprobs.max(initial=0) > 0:
        worst = rollout.logprobs[~(rollout.logprobs <= 0)][0]
        raise InvalidGroup(f"log-probability {worst} of a drawn token")


async def in_thread(function: Callable[[], T], timeout_s: float | None) -> T:
    """The result of a function that may block, in a thread that nobody waits for. Raises TimeoutError."""
    # Not an executor's: Python waits for those threads when it ends.
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result, raised = None, None
        try:
            result = function()
        except Exception as error:
            raised = error
        with suppress(RuntimeError):  # the loop has gone: so has who asked
            loop.call_soon_threadsafe(settle, result, raised)

    threading.Thread(target=run, name="environment", daemon=True).start()
    return await asyncio.wait_for(future, timeout_s)
