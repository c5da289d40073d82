"""herd.data.tasks.digits: questions of a known difficulty, and a grader that answers to any string."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.data.tasks.digits import DigitsTask, solve
from herd.data.tasks.task import UNKNOWN

TASK = DigitsTask(3)


def literal(question: str) -> str:
    """The answer, by other means than the task's."""
    operation, *digits = question.split()
    match operation:
        case "sort":
            return " ".join(digit for value in "0123456789" for digit in digits if digit == value)
        case "dedupe":
            return " ".join(digit for place, digit in enumerate(digits) if digit not in digits[:place])
        case "count":
            return str(len([digit for digit in digits if digit in "13579"]))
    return " ".join(digits if operation == "copy" else reversed(digits))


@pytest.mark.parametrize("cell", TASK.cells)
def test_the_questions_of_a_cell_are_of_its_operation_and_length_and_their_solutions_right(cell: str):
    operation, length = cell.split("-")
    for i in range(4):
        asked = TASK.question(cell, i)
        assert asked.split()[0] == operation
        assert len(asked.split()) == int(length) + 1
        assert TASK.solution(cell, i) == literal(asked)
        for said in (TASK.solution(cell, i), f" {TASK.solution(cell, i)}\n"):
            assert TASK.grade(TASK.prompt(cell, i), said).right


def test_a_question_is_a_function_of_seed_cell_and_index():
    assert [DigitsTask(3).question("sort-5", i) for i in range(60)] == [TASK.question("sort-5", i) for i in range(60)]
    assert [DigitsTask(4).question("sort-5", i) for i in range(60)] != [TASK.question("sort-5", i) for i in range(60)]


@given(st.sampled_from(TASK.cells), st.integers(0, 59), st.text())
def test_every_string_has_a_grade_and_only_the_answer_is_right(cell: str, i: int, said: str):
    assert TASK.grade(TASK.prompt(cell, i), said).right == (said.split() == literal(TASK.question(cell, i)).split())


def test_a_list_is_held_out_for_every_operation_whatever_the_seeds():
    def lists(heldout: bool, seed: int) -> set[str]:
        task = DigitsTask(seed, heldout=heldout)
        return {task.question(cell, i).partition(" ")[2] for cell in task.cells if cell[-1] == "3" for i in range(400)}

    trained, held = lists(False, 1) | lists(False, 2), lists(True, 3) | lists(True, 4)
    assert not trained & held
    assert len(trained) > 740  # of 1,000 lists in all
    assert 150 < len(held) < 250


@given(st.text(), st.text())
def test_any_other_prompt_is_unknown(prompt: str, said: str):
    if solve(prompt) is None:
        assert TASK.grade([{"role": "user", "content": prompt}], said) == UNKNOWN


def test_a_system_message_before_the_question_changes_nothing():
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "sort 2 1"}]
    assert TASK.grade(said, "1 2").right


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "user"}], [{"role": "user", "content": [{"type": "text", "text": "sort 1 2"}]}],
     [{"role": "user", "content": "sort"}], [{"role": "user", "content": "sort 1 22"}],
     [{"role": "user", "content": "sort ١ ٢"}], [{"role": "user", "content": "sort 1 2\n"}]],
)  # fmt: skip
def test_what_only_looks_like_a_question_is_unknown(messages: list[dict[str, Any]]):
    assert TASK.grade(messages, "1 2") == UNKNOWN
