"""Words to spell backward, and their letters to count: what is hard for models that read words as tokens.

"spell kodatu backward" is answered by "utadok", and "count a in kodata" by "2". The words are made up (consonants and
vowels in turn), so that there are enough of each length; or they are those of a list. An answer is graded from the
question's text.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from herd.core.streams import stream
from herd.data.tasks.task import UNKNOWN, Grade, Messages, asked, is_heldout, of_split
from herd.errors import HerdError

VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
BACKWARD = re.compile(r"spell (\S+) backward")
LETTERS = re.compile(r"count (\S) in (\S+)")
OPERATIONS = ("backward", "letters")
LEAST_WORDS = 5
"""Words of a length, on either side of the split, without which a list gives no cell of it."""
ABSENT_SHARE = 0.25
"""Share of the letters asked for that are drawn from all letters, so that 0 is an answer too."""


def solve(question: str) -> str | None:
    """The answer to a question of this task; None if it is no such."""
    if found := BACKWARD.fullmatch(question):
        return found[1][::-1]
    if found := LETTERS.fullmatch(question):
        return str(found[2].count(found[1]))
    return None


class SpellingTask:
    """Cells are an operation and the length of the word, as `backward-5`. A word is held out for both operations."""

    def __init__(
        self,
        seed: int,
        *,
        heldout: bool | None = False,
        lengths: Sequence[int] = (3, 4, 5, 6, 7, 8),
        words: Sequence[str] | None = None,
    ) -> None:
        """Of a list, `words` of letters alone count, in small letters. Raises HerdError where too few are left."""
        self._seed, self._heldout = seed, heldout
        self._words: dict[int, list[str]] | None = None
        if words is not None:
            known = sorted({word.lower() for word in words if word.lower().isalpha()})
            by_length = {length: [word for word in known if len(word) == length] for length in lengths}
            self._words = {length: found for length, found in by_length.items() if _enough(found)}
            lengths = tuple(self._words)
            if not lengths:
                raise HerdError(f"{len(known)} words are too few to spell: give more of 3 to 8 letters")
        self._cells = {f"{operation}-{length}": (operation, length) for length in lengths for operation in OPERATIONS}

    @property
    def cells(self) -> Sequence[str]:
        return tuple(self._cells)

    def question(self, cell: str, index: int) -> str:
        """The text of question `index` of `cell`."""
        operation, length = self._cells[cell]
        rng = stream(self._seed, "spelling", operation, length, index)
        word = of_split(self._drawn(rng, length), self._heldout)
        if operation == "backward":
            return f"spell {word} backward"
        letters = VOWELS + CONSONANTS if rng.random() < ABSENT_SHARE else word
        return f"count {letters[rng.integers(len(letters))]} in {word}"

    def _drawn(self, rng: np.random.Generator, length: int) -> Iterator[str]:
        for _ in count():
            if self._words is not None:
                yield self._words[length][rng.integers(len(self._words[length]))]
            else:
                begin = rng.integers(2)
                kinds = [(VOWELS, CONSONANTS)[(begin + place) % 2] for place in range(length)]
                yield "".join(kind[rng.integers(len(kind))] for kind in kinds)

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
        passed = answer.strip() == right
        return Grade(score=float(passed), reason="right" if passed else f"{right} is right")


def _enough(words: Sequence[str]) -> bool:
    held = sum(map(is_heldout, words))
    return min(held, len(words) - held) >= LEAST_WORDS
