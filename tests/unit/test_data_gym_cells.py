"""Generators of reasoning-gym in cells: the levels of their curricula, graded from the messages alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_tasks import make_pack

from herd.data.sources.fetch import Pack
from herd.data.tasks.gym_cells import LEVELS, GymCells
from herd.data.tasks.known import open_task
from herd.data.tasks.task import UNKNOWN
from herd.errors import HerdError

CODE = """
import dataclasses, random
@dataclasses.dataclass
class LCMConfig:
    seed: int
    size: int
    high: int = 9
class LCMDataset:
    def __init__(self, config): self.config = config
    def __getitem__(self, i):
        a = random.Random(self.config.seed + i).randint(1, self.config.high)
        return {"question": f"twice {a}?", "answer": 2 * a if a % 7 else None, "metadata": {}}
    def score_answer(self, answer, entry): return 1.0 if answer == str(entry["answer"]) else 0.01
class Attribute:
    levels = [99, 999, 9999, 99999, 999999]
class LCMCurriculum:
    attributes = {"high": Attribute, "fixed": type("Fixed", (), {"levels": [1]})}
    def set_attr_level(self, name, level):
        if name == "high": self.high = Attribute.levels[level]
        else: assert level == 0
    def generate_configuration(self, options): return LCMConfig(**options, high=self.high)
"""
FEW = CODE.replace("LCM", "Few").replace("[99,", "[1,")


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[Pack]:
    modules = {"lcm": CODE, "few": FEW, "other": "import no_such_package"}
    yield from make_pack(tmp_path, {f"arithmetic/{name}.py": code for name, code in modules.items()})


def number(messages: list[dict[str, str]]) -> int:
    return int(messages[0]["content"].split()[1].rstrip("?"))


def test_cells_are_levels_and_held_out_problems_are_none_of_training(pack: Pack):
    trained = GymCells("arithmetic.lcm", 1, pack=pack)
    assert trained.cells == tuple(f"level-{level}" for level in range(LEVELS))
    held = GymCells("arithmetic.lcm", 7, heldout=True, pack=pack)
    for level, cell in enumerate(trained.cells):
        asked, kept = ({number(task.prompt(cell, i)) for i in range(200)} for task in (trained, held))
        assert 10 ** (level + 1) < max(asked) < 10 ** (level + 2)
        assert kept and not asked & kept
    again = GymCells("arithmetic.lcm", 1, pack=pack)
    assert [again.prompt("level-2", i) for i in range(20)] == [trained.prompt("level-2", i) for i in range(20)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(said=st.text(), index=st.integers(0, 10**9))
def test_an_answer_is_right_by_all_marks_and_graded_by_any_process(pack: Pack, said: str, index: int):
    asking, grading = (GymCells("arithmetic.lcm", seed, pack=pack) for seed in (1, 2))
    prompt = asking.prompt("level-1", index)
    grade = grading.grade(prompt, said)
    assert grade.right == (said.strip() == str(2 * number(prompt))) and grade.score in (0, 1)
    if number(prompt) % 7:
        assert grading.grade(prompt, asking.solution("level-1", index)).right
    else:
        with pytest.raises(HerdError, match="no solutions to show"):
            asking.solution("level-1", index)
    assert grading.grade([{"role": "user", "content": said}], said) == UNKNOWN


def test_what_cannot_be_used_is_named(pack: Pack):
    for generator, said in (
        ("lcm", "names no generator"),
        ("arithmetic.nothing", "cannot be used"),
        ("arithmetic.other", "No module named 'no_such_package'"),
        ("arithmetic.few", "makes no problem of level-0: of the questions drawn none is held out"),
    ):
        with pytest.raises(HerdError, match=said):
            GymCells(generator, 1, heldout=True, pack=pack)
    with pytest.raises(HerdError, match="names no generator"):
        open_task("reasoning-gym/lcm", None, 1)
