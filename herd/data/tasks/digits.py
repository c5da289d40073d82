"""Copying, reversing and sorting digits: questions of a known difficulty, which grows with the number of digits.

"sort 5 2 9" is answered by "2 5 9". Question `i` is a function of the seed and `i` alone, and an answer is graded from
the question's text, so that a grader needs no list of questions.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from herd.core.streams import stream
from herd.data.tasks.task import UNKNOWN, Grade, Messages

OPERATIONS: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": list,
    "reverse": lambda digits: digits[::-1],
    "sort": sorted,
}
QUESTION = re.compile(rf"({'|'.join(OPERATIONS)})((?: [0-9])+)")


def solve(question: str) -> str | None:
    """The answer to a question of this task; None if it is no such."""
    found = QUESTION.fullmatch(question)
    return None if found is None else " ".join(OPERATIONS[found[1]](found[2].split()))


class DigitsTask:
    """`num` questions, of each operation and each number of digits in turn. The same question may come again."""

    def __init__(
        self,
        *,
        num: int,
        seed: int,
        operations: Sequence[str] = tuple(OPERATIONS),
        lengths: Sequence[int] = (3, 4, 5, 6, 7),
    ) -> None:
        self._num, self._seed = num, seed
        self.cells = [(operation, length) for length in lengths for operation in operations]
        """Operation and number of digits; question `i` is of cell `i % len(cells)`."""

    def __len__(self) -> int:
        return self._num

    def cell(self, i: int) -> tuple[str, int]:
        """The operation of question `i` and its number of digits."""
        return self.cells[i % len(self.cells)]

    def question(self, i: int) -> str:
        """The text of question `i`."""
        operation, length = self.cell(i)
        digits = stream(self._seed, "digits", operation, length, i // len(self.cells)).integers(0, 10, length)
        return " ".join([operation, *map(str, digits)])

    def prompt(self, i: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.question(i)}]

    def solution(self, i: int) -> str:
        answer = solve(self.question(i))
        assert answer is not None
        return answer

    def grade(self, messages: Messages, answer: str) -> Grade:
        asked = messages[0].get("content") if messages else None
        right = solve(asked) if isinstance(asked, str) else None
        if right is None:
            return UNKNOWN
        passed = " ".join(answer.split()) == right
        return Grade(score=float(passed), reason="right" if passed else f"{right} is right")
