"""Lists of digits to copy, reverse, sort, dedupe or count: questions of a known difficulty, the number of digits.

"sort 5 2 9" is answered by "2 5 9", "dedupe 4 4 1 4" by "4 1", and "count 3 8 1", of the odd ones, by "2". An answer is
graded from the question's text, so that a grader needs no list of questions.
"""

import re
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from herd.core.streams import stream
from herd.data.tasks.task import UNKNOWN, Grade, Messages, asked, of_split

OPERATIONS: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": list,
    "reverse": lambda digits: digits[::-1],
    "sort": sorted,
    "dedupe": lambda digits: list(dict.fromkeys(digits)),
    "count": lambda digits: [str(sum(int(digit) % 2 for digit in digits))],
}
QUESTION = re.compile(rf"({'|'.join(OPERATIONS)})((?: [0-9])+)")


def solve(question: str) -> str | None:
    """The answer to a question of this task; None if it is no such."""
    found = QUESTION.fullmatch(question)
    return None if found is None else " ".join(OPERATIONS[found[1]](found[2].split()))


class DigitsTask:
    """Cells are an operation and a number of digits, as `sort-5`. A list of digits is held out for all operations.

    With `heldout=None` a list is of either kind.
    """

    def __init__(
        self,
        seed: int,
        *,
        heldout: bool | None = False,
        operations: Sequence[str] = tuple(OPERATIONS),
        lengths: Sequence[int] = (3, 4, 5, 6, 7),
    ) -> None:
        self._seed, self._heldout = seed, heldout
        self._cells = {f"{operation}-{length}": (operation, length) for length in lengths for operation in operations}

    @property
    def cells(self) -> Sequence[str]:
        return tuple(self._cells)

    def question(self, cell: str, index: int) -> str:
        """The text of question `index` of `cell`."""
        operation, length = self._cells[cell]
        rng = stream(self._seed, "digits", operation, length, index)
        lists = (" ".join(map(str, rng.integers(0, 10, length))) for _ in count())
        return f"{operation} {of_split(lists, self._heldout)}"

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.question(cell, index)}]

    def solution(self, cell: str, index: int) -> str:
        answer = solve(self.question(cell, index))
        assert answer is not None
        return answer

    def grade(self, messages: Messages, answer: str) -> Grade:
        right = solve(asked(messages))
        if right is None:
            return UNKNOWN
        passed = " ".join(answer.split()) == right
        return Grade(score=float(passed), reason="right" if passed else f"{right} is right")
