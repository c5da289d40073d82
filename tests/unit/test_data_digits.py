"""herd.data.tasks.digits: questions of a known difficulty, and a grader that answers to any string."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.data.tasks.digits import DigitsTask, solve
from herd.data.tasks.task import UNKNOWN

TASK = DigitsTask(num=60, seed=3)


def literal(question: str) -> str:
    """The answer, by other means than the task's."""
    operation, *digits = question.split()
    if operation == "sort":
        return " ".join(digit for value in "0123456789" for digit in digits if digit == value)
    return " ".join(digits if operation == "copy" else reversed(digits))


def test_questions_are_of_each_operation_and_length_in_turn_and_their_solutions_right():
    for i in range(len(TASK)):
        operation, length = TASK.cell(i)
        asked = TASK.question(i)
        assert asked.split()[0] == operation
        assert len(asked.split()) == length + 1
        assert TASK.solution(i) == literal(asked)
        for said in (TASK.solution(i), f" {TASK.solution(i)}\n"):
            assert TASK.grade(TASK.prompt(i), said).right
    cells = [TASK.cell(i) for i in range(len(TASK))]
    assert {cells.count(cell) for cell in cells} == {4}
    assert len(set(cells)) == 15


def test_a_question_is_a_function_of_seed_and_place():
    assert [DigitsTask(num=99, seed=3).question(i) for i in range(60)] == [TASK.question(i) for i in range(60)]
    assert [DigitsTask(num=60, seed=4).question(i) for i in range(60)] != [TASK.question(i) for i in range(60)]


@given(st.integers(0, 59), st.text())
def test_every_string_has_a_grade_and_only_the_answer_is_right(i: int, said: str):
    assert TASK.grade(TASK.prompt(i), said).right == (said.split() == literal(TASK.question(i)).split())


@given(st.text(), st.text())
def test_any_other_prompt_is_unknown(prompt: str, said: str):
    if solve(prompt) is None:
        assert TASK.grade([{"role": "user", "content": prompt}], said) == UNKNOWN


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "user"}], [{"role": "user", "content": [{"type": "text", "text": "sort 1 2"}]}],
     [{"role": "user", "content": "sort"}], [{"role": "user", "content": "sort 1 22"}],
     [{"role": "user", "content": "sort ١ ٢"}], [{"role": "user", "content": "sort 1 2\n"}]],
)  # fmt: skip
def test_what_only_looks_like_a_question_is_unknown(messages: list[dict[str, Any]]):
    assert TASK.grade(messages, "1 2") == UNKNOWN
