"""Rows as prompts: chats with a right answer, or prompts of the user's, cell by cell in an order of their own."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from herd.core.streams import stream
from herd.errors import HerdError


class Shuffled:
    """The rows of each cell: all of them once in an order of their own, then again in another one."""

    def __init__(self, seed: int, rows: Mapping[str, Sequence[int]], what: str) -> None:
        """Raises HerdError where there is no row; `what` says of what."""
        self._seed, self._rows = seed, {cell: rows[cell] for cell in sorted(rows) if rows[cell]}
        if not self._rows:
            raise HerdError(f"{what}: give more of them")
        self._order = lru_cache(maxsize=256)(self._drawn)

    @property
    def cells(self) -> Sequence[str]:
        return tuple(self._rows)

    def row(self, cell: str, index: int) -> int:
        """Which row prompt `index` of `cell` is."""
        turn, place = divmod(index, len(self._rows[cell]))
        return self._rows[cell][int(self._order(cell, turn)[place])]

    def _drawn(self, cell: str, turn: int) -> np.ndarray:
        return stream(self._seed, "rows", cell, turn).permutation(len(self._rows[cell]))


def cell_name(*words: str) -> str:
    """A name without spaces."""
    return "-".join("-".join(word.split()) for word in words) or "-"
