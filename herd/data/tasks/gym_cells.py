"""A generator of reasoning-gym as a task in cells: the levels of its own curriculum.

At `level-2` each attribute that its curriculum has is at its third value, or the highest below. The problem stands in
the prompt beside its text (`problem`), so that an answer is graded from the messages alone. Only answers that the
generator's verifier gives all marks are right: some of its parts give a little for any answer.
"""

import re
from collections.abc import Sequence
from typing import Any

from herd.core.streams import seed_of
from herd.data.sources.fetch import Pack
from herd.data.tasks.gym import Gym, Problem
from herd.data.tasks.task import UNKNOWN, Grade, Messages, of_split
from herd.errors import HerdError

LEVELS = 4
SIZE = 2**31 - 1
"""Problems of a generator: each is made when it is asked for."""
STRIDE = 256
"""Problems that belong to one prompt: the first that is held out or not, as asked, is it."""


class GymCells:
    """Problems of `generator`, a module of reasoning-gym such as `arithmetic.chain_sum`."""

    def __init__(self, generator: str, seed: int, *, heldout: bool | None = False, pack: Pack | None = None) -> None:
        """Raises HerdError where there is no such generator, or it needs files or packages that are not there."""
        if not re.fullmatch(r"[a-z_]+\.[a-z_0-9]+", generator):
            raise HerdError(f"{generator!r} names no generator of reasoning-gym: give its module, as arithmetic.lcm")
        self._gym, self._generator, self._heldout = Gym(pack), generator, heldout
        size = {"seed": seed_of(seed, "gym", generator) % 2**31, "size": SIZE}
        self._configs = self._gym.levels(generator, LEVELS, size)
        for cell in self._configs:
            try:
                self.prompt(cell, 0)
            except Exception as error:  # whatever a generator makes of its own levels
                raise HerdError(f"reasoning-gym's {generator} makes no problem of {cell}: {error}") from None

    @property
    def cells(self) -> Sequence[str]:
        return tuple(self._configs)

    def problem(self, cell: str, index: int) -> Problem:
        """The problem of prompt `index` of `cell`."""
        own = range(index * STRIDE, (index + 1) * STRIDE)
        problems = (Problem(dataset=self._generator, config=self._configs[cell], index=place % SIZE) for place in own)
        return of_split(problems, self._heldout, self._text)

    def _text(self, problem: Problem) -> str:
        return str(self._gym.entry(problem)["question"]).strip()

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        problem = self.problem(cell, index)
        return [{"role": "user", "content": self._text(problem), "problem": problem.to_json()}]

    def solution(self, cell: str, index: int) -> str:
        answer = self._gym.entry(self.problem(cell, index))["answer"]
        if answer is None:
            raise HerdError(f"reasoning-gym's {self._generator} has a verifier, but no solutions to show")
        return str(answer)

    def grade(self, messages: Messages, answer: str) -> Grade:
        text = next((message["problem"] for message in messages if isinstance(message.get("problem"), str)), None)
        if text is None:
            return UNKNOWN
        grade = self._gym.grade(Problem.from_json(text), answer)
        return Grade(score=float(grade.right), reason=grade.reason, parts={"verifier": grade.score})
