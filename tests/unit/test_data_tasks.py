"""Tasks: generators run from the cached package, and their verifiers grade any string, also of a data folder's rows."""

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herd.config import LANGUAGES
from herd.data.packages.dialogues import _sum_wording, _sums
from herd.data.sources.fetch import Pack
from herd.data.sources.package_list import SOURCES
from herd.data.tasks.chats import Chat, ChatTask
from herd.data.tasks.gym import SUMS, Generator, GymTask, Problem
from herd.data.tasks.task import Task
from herd.errors import HerdError

CODE = """
class ChainSumConfig:
    def __init__(self, **options): self.options = options
class ChainSumDataset:
    def __init__(self, config): self.config = config
    def __getitem__(self, i): return {"question": "?", "answer": i + 1, "metadata": {"expression": f"{i} + 1"}}
    def score_answer(self, answer, entry):
        # Two right answers; half the marks for a word; and all that a verifier should not do.
        if answer == "many": raise RecursionError
        if answer in {"nan", "-1", "7", "none"}: return {"nan": float("nan"), "-1": -1, "7": 7, "none": None}[answer]
        if answer[0] == "?": return 0.5
        return float(answer in {str(entry["answer"]), f"{entry['answer']}.0"})
"""


def make_pack(folder: Path, modules: dict[str, str]) -> Iterator[Pack]:
    """A package reasoning-gym with these modules, which are forgotten afterwards."""
    path = folder / "gym.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("reasoning_gym/__init__.py", "raise ImportError('all generators')")
        for name, code in modules.items():
            archive.writestr(f"reasoning_gym/{name}", code)
    (gym,) = [source for source in SOURCES if source.name == "reasoning-gym"]
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "reasoning_gym"}
    yield Pack(source=gym, path=path, version="0", sha256="")
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[Pack]:
    yield from make_pack(tmp_path, {"arithmetic/chain_sum.py": CODE})


def rows(task: GymTask) -> list[Chat]:
    """As a data folder keeps them."""
    return [
        Chat(
            id=str(i),
            split="heldout",
            kind="arithmetic",
            language="en",
            messages=[*task.prompt(i), {"role": "assistant", "content": task.solution(i)}],
            answer=task.solution(i),
            verifier=task.problem(i).to_json(),
        )
        for i in range(len(task))
    ]


def test_generators_run_from_inside_the_cached_package(pack: Pack) -> None:
    task = GymTask(SUMS, num=5, seed=1, pack=pack, wording=lambda i, problem: f"{i}: {problem}?")
    assert [task.text(i) for i in range(5)] == ["0 + 1", "0 + 1", "0 + 1", "1 + 1", "1 + 1"]
    assert [task.solution(i) for i in range(5)] == ["1", "1", "1", "2", "2"]
    assert task.prompt(3) == [{"role": "user", "content": "3: 1 + 1?"}]


def test_a_task_and_its_rows_in_a_data_folder_grade_alike_by_the_verifier(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.data.tasks.gym.pack_of", lambda name: pack)
    task = GymTask(SUMS[:1], num=4, seed=1, pack=pack)
    for one in (task, ChatTask(rows(task))):
        for i in range(4):
            prompt = one.prompt(i)
            scores = [one.grade(prompt, said).score for said in (task.solution(i), f" {i + 1}.0\n", "? a", "x", "nan")]
            assert scores == [1, 1, 0.5, 0, 0]
            assert one.grade([*prompt, {"role": "assistant", "content": "let me see"}], str(i + 1)).right
        assert one.grade(prompt, "5").reason.endswith("4 is right")
        assert one.grade([{"role": "user", "content": "another"}], "1").reason == "not a prompt of this task"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.text(st.characters(exclude_categories=())) | st.sampled_from(["many", "nan", "-1", "7", "none", ""]))
def test_every_string_has_a_grade_from_0_to_1(pack: Pack, answer: str) -> None:
    task = GymTask(SUMS[:1], num=2, seed=1, pack=pack)
    compared = Chat(id="a", split="", kind="capital", language="de", messages=task.prompt(0), answer="Rom")
    tasks: list[Task] = [task, ChatTask([compared])]
    for one in tasks:
        for messages in (one.prompt(0), [], [{"content": answer}]):
            grade = one.grade(messages, answer)
            assert 0 <= grade.score <= 1 and grade.reason


def test_the_chats_of_a_task_ask_in_every_language_and_keep_the_verifier(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.data.tasks.gym.pack_of", lambda name: pack)
    task = GymTask(SUMS, num=2 * len(LANGUAGES), seed=1, pack=pack, wording=_sum_wording)
    chats = list(_sums(task, 0.3))
    assert {chat.language for chat in chats} == set(LANGUAGES)
    assert {chat.split for chat in chats} == {"train", "heldout"}
    graded = ChatTask(chats)
    for i, chat in enumerate(chats):
        assert chat.messages == [*task.prompt(i), {"role": "assistant", "content": chat.answer}]
        assert Problem.from_json(chat.verifier) == task.problem(i)
        assert graded.grade(graded.prompt(i), f"{chat.answer}.0").right  # which comparing texts would not take


def test_a_question_with_several_right_answers_takes_each() -> None:
    asked = [{"role": "user", "content": "capital of Bolivia?"}]
    chats = [
        Chat(id=answer, split="heldout", kind="capital", language="en", messages=asked, answer=answer)
        for answer in ("Sucre", "La Paz")
    ]
    task = ChatTask(chats)
    assert [task.grade(asked, said).right for said in ("sucre.", "The La Paz", "Lima")] == [True, True, False]


def test_a_verifier_of_another_version_or_of_nothing_is_refused(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.data.tasks.gym.pack_of", lambda name: pack)
    [row] = rows(GymTask(SUMS[:1], num=1, seed=1, pack=pack))
    other = Chat(**{**vars(row), "answer": "8"})
    with pytest.raises(HerdError, match="makes another problem than it made for 0"):
        ChatTask([other]).grade(other.question, "1")
    for dataset in ("os.path.x", "../arithmetic.chain_sum", 3):
        with pytest.raises(HerdError, match="names no problem"):
            Problem.from_json(json.dumps({"dataset": dataset, "config": {}, "index": 0}))


@pytest.mark.parametrize(
    ("generator", "index", "right", "wrong"),
    [
        (SUMS[2], 3, ["{}", "+{}.00"], ["{}1", ""]),
        (Generator(dataset="algorithmic.spell_backward", config={}), 0, ["{}"], ["a"]),
    ],
)
def test_the_real_verifiers_know_right_answers_in_more_than_one_spelling(
    generator: Generator, index: int, right: list[str], wrong: list[str]
) -> None:
    from herd.core.files import cache_folder

    found = list(cache_folder().glob("reasoning-gym-*.zip"))
    if not found:
        pytest.skip("reasoning-gym is not in the cache")
    (gym,) = [source for source in SOURCES if source.name == "reasoning-gym"]
    task = GymTask((generator,), num=8, seed=1, pack=Pack(source=gym, path=found[0], version="", sha256=""))
    solution = task.solution(index)
    assert all(task.grade(task.prompt(index), one.format(solution)).right for one in right)
    assert not any(task.grade(task.prompt(index), one.format(solution)).right for one in wrong)
