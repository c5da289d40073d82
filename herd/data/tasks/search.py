"""Questions with several right answers, any of which counts: digits that sum to 10, and the way through a maze.

"ten 3 8 7 2" is answered by "3 7", "8 2" or "2 8"; "maze S . # . . # # . E", a square of three rows, by moves such as
"R D D R". No demonstration is the answer, so there is something to find beyond what was shown. An answer is graded from
the question's text.
"""

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, count, product
from typing import Any

import numpy as np

from herd.core.streams import stream
from herd.data.tasks.task import UNKNOWN, Grade, Messages, asked, of_split

TOTAL, SIDE = 10, 3
TEN = re.compile(r"ten((?: [1-9])+)")
MAZE = re.compile(r"maze((?: [SE.#]){9})")
MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}

Place = tuple[int, int]


class SearchTask:
    """Cells are `ten-5`, of a list of five digits, and `maze-3`, of which the shortest way has three moves. Digits are
    held out in any order."""

    def __init__(
        self,
        seed: int,
        *,
        heldout: bool | None = False,
        lengths: Sequence[int] = (3, 4, 5, 6),
        distances: Sequence[int] = (1, 2, 3, 4),
    ) -> None:
        self._seed, self._heldout = seed, heldout
        self._cells = {f"ten-{length}": ("ten", length) for length in lengths}
        self._cells |= {f"maze-{distance}": ("maze", distance) for distance in distances}

    @property
    def cells(self) -> Sequence[str]:
        return tuple(self._cells)

    def question(self, cell: str, index: int) -> str:
        """The text of question `index` of `cell`."""
        (kind, size), rng = self._cells[cell], stream(self._seed, "search", cell, index)
        if kind == "maze":
            known = mazes()[size]
            return f"maze {of_split((known[rng.integers(len(known))] for _ in count()), self._heldout)}"
        digits = of_split(_solvable(rng, size), self._heldout).split()
        return " ".join(["ten", *(digits[place] for place in rng.permutation(size))])

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.question(cell, index)}]

    def solution(self, cell: str, index: int) -> str:
        """One of the right answers, drawn: of a maze one of the shortest."""
        found = solutions(self.question(cell, index))
        return found[stream(self._seed, "search solution", cell, index).integers(len(found))]

    def grade(self, messages: Messages, answer: str) -> Grade:
        question = asked(messages)
        if TEN.fullmatch(question):
            passed = _is_ten(question.split()[1:], answer.split())
        elif is_maze(question):
            passed = _leads(question.split()[1:], answer.split())
        else:
            return UNKNOWN
        return Grade(
            score=float(passed), reason="right" if passed else "no digits of the list that sum to 10, or no way"
        )


def solutions(question: str) -> list[str]:
    """The digits that sum to 10, each set once; or the shortest ways."""
    items = question.split()[1:]
    if TEN.fullmatch(question):
        chosen = (picked for size in range(2, len(items) + 1) for picked in combinations(items, size))
        return sorted({" ".join(picked) for picked in chosen if sum(map(int, picked)) == TOTAL})
    distance = _distance(items)
    ways = product(MOVES, repeat=distance or 0)
    return [" ".join(way) for way in ways if _leads(items, way)]


def is_maze(question: str) -> bool:
    """Whether this is a maze with one start and one end."""
    return bool(MAZE.fullmatch(question)) and question.count("S") == question.count("E") == 1


@cache
def mazes() -> dict[int, list[str]]:
    """All mazes that have a way, by the moves of the shortest."""
    found: dict[int, list[str]] = {}
    for start, end in product(range(SIDE**2), repeat=2):
        if start == end:
            continue
        for walls in product(".#", repeat=SIDE**2 - 2):
            rest = iter(walls)
            fields = ["S" if place == start else "E" if place == end else next(rest) for place in range(SIDE**2)]
            distance = _distance(fields)
            if distance is not None:
                found.setdefault(distance, []).append(" ".join(fields))
    return found


def _solvable(rng: np.random.Generator, length: int) -> Iterator[str]:
    """Lists of digits, in order, of which some sum to 10."""
    for _ in count():
        text = " ".join(map(str, sorted(rng.integers(1, 10, length))))
        if solutions(f"ten {text}"):
            yield text


def _is_ten(digits: Sequence[str], chosen: Sequence[str]) -> bool:
    """Whether `chosen` are of `digits`, none more often than there, and sum to 10."""
    known = Counter(digits)
    known.subtract(chosen)
    return set(chosen) <= set(digits) and min(known.values()) >= 0 and sum(map(int, chosen)) == TOTAL


def _step(place: Place, move: str, fields: Sequence[str]) -> Place | None:
    """Where a move leads; None where it leaves the maze or meets a wall."""
    row, column = place[0] + MOVES[move][0], place[1] + MOVES[move][1]
    if not (0 <= row < SIDE and 0 <= column < SIDE) or fields[row * SIDE + column] == "#":
        return None
    return row, column


def _leads(fields: Sequence[str], moves: Sequence[str]) -> bool:
    """Whether the moves lead from start to end, to no field twice."""
    place: Place | None = divmod(fields.index("S"), SIDE)
    seen = {place}
    for move in moves:
        place = _step(place, move, fields) if place is not None and move in MOVES else None
        if place is None or place in seen:
            return False
        seen.add(place)
    return place == divmod(fields.index("E"), SIDE)


def _distance(fields: Sequence[str]) -> int | None:
    """Moves of the shortest way; None where there is none."""
    start, end = divmod(fields.index("S"), SIDE), divmod(fields.index("E"), SIDE)
    reached, waiting = {start: 0}, deque([start])
    while waiting:
        place = waiting.popleft()
        for move in MOVES:
            after = _step(place, move, fields)
            if after is not None and after not in reached:
                reached[after] = reached[place] + 1
                waiting.append(after)
    return reached.get(end)
