"""A model, data and environments for tests of online RL: random weights, and rewards that need no skill."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from herd.bench.select_world import new_model, questions, write_data
from herd.config import CheckpointConfig, RlConfig
from herd.engine.engine import Engine
from herd.engine.load import load
from herd.model.formats import huggingface
from herd.rl.environment import Reaction
from herd.rl.record import Group
from herd.rl.rollouts import Rollouts


class Parity:
    """Asks for digits; right is an answer of an even number of characters, which about half are."""

    cells = ("easy", "hard")
    tools = ()

    def __init__(self, seed: int = 0, heldout: bool = False) -> None:
        self.seed = seed

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"{cell[0]} {index}"}]

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        return Reaction(reward=float(len(answer["content"]) % 2 == 0))


class Jittered(Parity):
    """The same after a wait that no seed decides."""

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        time.sleep(random.Random().expovariate(200))
        return super().respond(messages, answer, seed=seed)


class Dying(Jittered):
    """Ends its process at the tenth answer that it grades, as long as the folder that DYING_FLAGS names has room: it
    holds at most DYING_TIMES flags, one for each death."""

    def __init__(self, seed: int = 0, heldout: bool = False) -> None:
        super().__init__(seed)
        self.num_graded = 0

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        reaction = super().respond(messages, answer, seed=seed)
        self.num_graded += 1
        if self.num_graded == 10 and "DYING_FLAGS" in os.environ:
            flags = Path(os.environ["DYING_FLAGS"])
            if len(list(flags.iterdir())) < int(os.environ["DYING_TIMES"]):
                (flags / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return reaction


class Talking(Parity):
    """Answers twice before it gives the reward, of all that was said."""

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        said = [one for one in messages if one["role"] == "assistant"]
        if len(said) < 2:
            return Reaction(reward=None, messages=({"role": "user", "content": f"go on {len(said)}"},))
        return super().respond(messages, answer, seed=seed)


class Wandering(Talking):
    """The same, after waits that no seed decides."""

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        time.sleep(random.Random().expovariate(100))
        return super().respond(messages, answer, seed=seed)


class Raising(Parity):
    """Raises at each prompt of the cell `hard`."""

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        if messages[0]["content"].startswith("h"):
            raise OSError("the sandbox is gone")
        return super().respond(messages, answer, seed=seed)


class Sometimes(Parity):
    """Raises the first time that it is asked about an answer, never again."""

    asked: ClassVar[set[str]] = set()

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        key = repr((messages[0]["content"], seed))
        if key not in self.asked:
            self.asked.add(key)
            raise OSError("busy")
        return super().respond(messages, answer, seed=seed)


class Hanging(Parity):
    """Never answers; makes the file that HANGING_FLAG names, if it does."""

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        if flag := os.environ.get("HANGING_FLAG"):
            Path(flag).touch()
        time.sleep(10_000)
        raise AssertionError


class Wrong(Parity):
    """A reward that is none."""

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        return Reaction(reward=float("nan"))


class Same(Parity):
    """All answers are worth the same."""

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        return Reaction(reward=0.1 + 0.2)


def make_world(folder: Path) -> tuple[Path, Path]:
    """A model folder and a data folder."""
    model = new_model(folder / "model", 0)
    data = write_data(folder / "data", questions(0, {"data": 2})["data"], 0)
    return model, data


def make_brief_world(folder: Path) -> tuple[Path, Path]:
    """The same with a model that ends one token in eight, where first weights would in 305: conversations of several
    turns then have all of them."""
    model, data = make_world(folder)
    transformer = load(model, dtype=torch.float32).transformer
    tokens_N = torch.arange(100)
    with torch.no_grad():
        hidden_ND = transformer(tokens_N, positions_N=tokens_N, starts_S=torch.tensor([0, 100], dtype=torch.int32))
        mean_D = hidden_ND.mean(0)
        row_D = transformer.unembedding.weight[transformer.config.special.eot]
        row_D.copy_(mean_D * (3.8 / mean_D.square().sum()))
    huggingface.save(transformer, model)
    return model, data


def settings(environment: type | str = Parity, **changes: Any) -> RlConfig:
    """A short run in fp32."""
    name = environment if isinstance(environment, str) else f"rl_world:{environment.__name__}"
    changes = {"num_steps": 3, "groups": 3, "group_size": 4, "max_tokens": 8, "dtype": "float32", **changes}
    changes.setdefault("checkpoint", CheckpointConfig(every_s=0))
    return RlConfig(environments=(name,), **changes)


def wait_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the engine stop after 10 steps of the same weights while the training computes the next ones, which so find
    answers half drawn: on a busy machine it can have drawn all that it may before they come."""
    step, groups = Engine._step, Rollouts.groups
    asked: list[int] = []  # steps whose groups are waited for, by the training and by the thread that reads ahead
    steps = Counter[int]()

    def step_and_wait(self: Engine) -> None:
        step(self)
        steps[self.version] += 1
        while steps[self.version] >= 10 and not (asked or self._closed) and self._inbox.empty():
            time.sleep(1e-3)

    def groups_and_say(self: Rollouts, number: int) -> list[Group]:
        asked.append(number)
        try:
            return groups(self, number)
        finally:
            asked.remove(number)

    monkeypatch.setattr(Engine, "_step", step_and_wait)
    monkeypatch.setattr(Rollouts, "groups", groups_and_say)
