"""herd.rl.environment: tasks as environments, delays, and how an environment is named."""

import math
import statistics
import subprocess
import sys
from typing import Any

import pytest

from herd.data.tasks.digits import DigitsTask
from herd.errors import HerdError
from herd.rl.environment import Delay, Environment, TaskEnvironment, open_environment

ASKED = [{"role": "user", "content": "sort 3 1 2"}]


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def test_the_reward_of_a_task_is_its_grade_and_ends_the_conversation():
    digits = open_environment("digits", None, 1)
    assert digits.prompt("sort-4", 7) == DigitsTask(1).prompt("sort-4", 7)
    right, wrong = digits.respond(ASKED, answer("1 2 3")), digits.respond(ASKED, answer("3 1 2"))
    assert (right.reward, wrong.reward) == (1, 0)
    assert not right.messages and right.parts == {"score": 1, "ended": 1}
    for nothing in ({"role": "assistant"}, answer(None)):  # type: ignore[arg-type]
        assert digits.respond(ASKED, nothing).reward == 0


def test_an_answer_that_was_cut_off_is_worth_nothing():
    cut = open_environment("digits", None, 1).respond(ASKED, answer("1 2 3", finish_reason="length"))
    assert cut.reward == 0 and cut.parts == {"score": 1, "ended": 0}


def test_a_delay_waits_as_long_for_the_same_answer_and_is_log_normal_about_its_median():
    waited: list[float] = []
    inner = TaskEnvironment(DigitsTask(1))
    slow = Delay(inner, 0.5, 9, sleep=waited.append)
    assert slow.respond(ASKED, answer("1 2 3"), seed=4) == inner.respond(ASKED, answer("1 2 3"))
    slow.respond(ASKED, answer("1 2 3"), seed=4)
    assert waited == [slow.wait_s(ASKED, answer("1 2 3"), seed=4)] * 2
    waits = [slow.wait_s(ASKED, answer("1 2 3"), seed=seed) for seed in range(4000)]
    logs = [math.log(one / 0.5) for one in waits]
    assert abs(statistics.mean(logs)) < 0.05 and abs(statistics.stdev(logs) - 1) < 0.05
    grown = Delay(inner, 0.5, 9, growth=0.1)
    assert grown.wait_s(ASKED, answer("1 2 3"), seed=4) == pytest.approx(1.5 * waited[0])


class Mine:
    """An environment of a user's."""

    cells, tools = ("only",), ()

    def __init__(self, *, seed: int, heldout: bool) -> None:
        self.made = (seed, heldout)

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"{cell} {index}"}]

    def respond(self, messages: Any, answer: Any, *, seed: int = 0) -> Any:
        raise NotImplementedError


def test_an_environment_is_named_or_the_users_own():
    mine = open_environment(f"{__name__}:Mine", None, 5, heldout=True)
    assert isinstance(mine, Mine) and mine.made == (5, True)
    typed: Environment = mine
    assert typed.cells == ("only",)
    with pytest.raises(HerdError, match="unknown environment 'digit', did you mean 'digits'"):
        open_environment("digit", None, 1)
    with pytest.raises(HerdError, match="gives dict, which has no cells"):
        open_environment("builtins:dict", None, 1)


def test_an_environment_may_be_had_without_some_of_its_cells():
    some = open_environment("digits[sort-*,copy-3]", None, 1)
    assert set(some.cells) == {"copy-3", *(f"sort-{length}" for length in range(3, 8))}
    assert some.prompt("sort-4", 7) == DigitsTask(1).prompt("sort-4", 7)
    assert some.respond(ASKED, answer("1 2 3")).reward == 1
    assert open_environment(f"{__name__}:Mine[on*]", None, 5).cells == ("only",)
    with pytest.raises(HerdError, match="unknown cell 'sorts-3', did you mean 'sort-3'"):
        open_environment("digits[sorts-3]", None, 1)


def test_the_protocol_needs_no_torch():
    code = "import sys, herd.rl.environment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
