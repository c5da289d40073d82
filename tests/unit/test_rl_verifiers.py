"""herd.rl.adapters.verifiers, with the package itself where it is installed."""

import sys
import types
from typing import Any

import pytest

from herd.errors import HerdError
from herd.rl.environment import Environment, open_environment

CODE = """
import verifiers.v1 as vf
__all__ = ["Sums"]
class Data(vf.TaskData):
    right: str
class Sum(vf.Task[Data]):
    @vf.reward
    async def exact(self, task: Data, trace: vf.Trace) -> float:
        return float(trace.last_reply == task.right)
    @vf.reward(weight=0.5)
    async def short(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply) < 4)
class Sums(vf.Taskset[Sum]):
    def load(self):
        for i in range(50):
            yield Sum(Data(prompt=f"{i} + 1?", right=str(i + 1), system_prompt="Be brief."), self.config.task)
"""
RUNTIME = CODE.replace("(self, trace: vf.Trace)", "(self, trace: vf.Trace, runtime: vf.Runtime)")


def opened(code: str, monkeypatch: pytest.MonkeyPatch, *, heldout: bool = False) -> Environment:
    module = types.ModuleType("sums_of_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__spec__ = types.SimpleNamespace(name=module.__name__)  # type: ignore[assignment]
    exec(code, module.__dict__)
    return open_environment("verifiers/sums_of_a_test", None, 1, heldout=heldout)


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    with pytest.raises(HerdError, match=r"pip install 'herd-lm\[verifiers\]'"):
        open_environment("verifiers/gsm8k", None, 1)


def test_answers_are_scored_by_the_rewards_of_the_task(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("verifiers.v1")
    sums = opened(CODE, monkeypatch)
    for index in range(5):
        prompt = sums.prompt("task", index)
        assert prompt[0] == {"role": "system", "content": "Be brief."}
        right = str(int(prompt[1]["content"].split()[0]) + 1)
        reaction = sums.respond(prompt, said(right))
        assert reaction.reward == 1.5 and reaction.parts == {"exact": 1, "short": 0.5, "ended": 1}
        assert sums.respond(prompt, said("long and wrong")).reward == 0
        assert sums.respond(prompt, said(right, finish_reason="length")).reward == 0


def test_what_is_held_out_is_not_of_training(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("verifiers.v1")
    trained, held = opened(CODE, monkeypatch), opened(CODE, monkeypatch, heldout=True)
    texts = [{one.prompt("task", i)[1]["content"] for i in range(100)} for one in (trained, held)]
    assert sum(map(len, texts)) == 50 and not texts[0] & texts[1] and len(texts[1]) > 2


def test_tasks_that_need_more_than_an_answer_are_refused(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("verifiers.v1")
    with pytest.raises(HerdError, match="its tasks need the runtime of a harness"):
        opened(RUNTIME, monkeypatch)
    with pytest.raises(HerdError, match="cannot be opened"):
        open_environment("verifiers/no_such_set", None, 1)
