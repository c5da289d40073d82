"""Sums written out step by step, of whose answers only the last line counts: the model may find steps of its own.

"add 4 7 9" is shown as "4 + 7 = 11", "11 + 9 = 20" on two lines. An answer is graded from the question's text: by what
follows the last `=` of its last line, or by this line if it has none.
"""

import re
from collections.abc import Sequence
from itertools import accumulate, count, pairwise
from typing import Any

from herd.core.streams import stream
from herd.data.tasks.task import UNKNOWN, Grade, Messages, asked, of_split

QUESTION = re.compile(r"add((?: [1-9])+)")


def terms_of(question: str) -> list[int] | None:
    """The terms of a question of this task; None if it is no such."""
    found = QUESTION.fullmatch(question)
    return None if found is None else [int(term) for term in found[1].split()]


def written_out(terms: Sequence[int]) -> str:
    """The sum, a line for each step."""
    steps = zip(pairwise(accumulate(terms)), terms[1:], strict=True)
    return "\n".join(f"{before} + {term} = {after}" for (before, after), term in steps)


class ChainsTask:
    """Cells are a number of terms, as `add-4`. Terms are held out in any order."""

    def __init__(self, seed: int, *, heldout: bool | None = False, lengths: Sequence[int] = (2, 3, 4, 5, 6)) -> None:
        self._seed, self._heldout = seed, heldout
        self._cells = {f"add-{length}": length for length in lengths}

    @property
    def cells(self) -> Sequence[str]:
        return tuple(self._cells)

    def question(self, cell: str, index: int) -> str:
        """The text of question `index` of `cell`."""
        rng = stream(self._seed, "chains", cell, index)
        drawn = (rng.integers(1, 10, self._cells[cell]) for _ in count())
        terms = of_split((" ".join(map(str, sorted(one))) for one in drawn), self._heldout).split()
        return " ".join(["add", *(terms[place] for place in rng.permutation(len(terms)))])

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.question(cell, index)}]

    def solution(self, cell: str, index: int) -> str:
        terms = terms_of(self.question(cell, index))
        assert terms is not None
        return written_out(terms)

    def grade(self, messages: Messages, answer: str) -> Grade:
        terms = terms_of(asked(messages))
        if terms is None:
            return UNKNOWN
        lines = answer.split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        passed = last.rpartition("=")[2].strip() == str(sum(terms))
        steps = float(" ".join(answer.split()) == " ".join(written_out(terms).split()))
        reason = "right" if passed else f"{sum(terms)} is right"
        return Grade(score=float(passed), reason=reason, parts={"steps": steps})
