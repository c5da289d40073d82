"""The chats of a data folder that have a right answer, as a task in cells: their kind and language, as `name-de`.

Among them are the names of pictures, `name`; pictures and clips stand in the messages by their ids.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from herd.data.loading import tables
from herd.data.tasks.chats import Chat, ChatTask
from herd.data.tasks.rows import Shuffled, cell_name
from herd.data.tasks.task import Grade, Messages

COLUMNS = ("id", "split", "kind", "language", "messages", "answer")


class ChatCells:
    """Chats without tools; of the `kinds` named, or of all."""

    def __init__(self, data: Path, seed: int, *, heldout: bool = False, kinds: Collection[str] = ()) -> None:
        """Raises HerdError where the data folder has none."""
        wanted = [
            row
            for row in tables.read(data, "chats", COLUMNS, optional=("verifier", "tools"))
            if row["answer"] and not row.pop("tools", "") and (row["kind"] in kinds or not kinds)
        ]
        self._task = ChatTask([Chat(**{**row, "messages": json.loads(row["messages"])}) for row in wanted])
        cells: dict[str, list[int]] = {}
        for place, chat in enumerate(self._task.chats):
            if (chat.split != "train") == heldout:
                cells.setdefault(cell_name(chat.kind, chat.language), []).append(place)
        split, of = "held-out" if heldout else "training", f" of the kind {', '.join(kinds)}" if kinds else ""
        self._shuffled = Shuffled(seed, cells, f"{data} has no {split} chats{of} with a right answer")

    @property
    def cells(self) -> Sequence[str]:
        return self._shuffled.cells

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return self._task.prompt(self._shuffled.row(cell, index))

    def solution(self, cell: str, index: int) -> str:
        return self._task.solution(self._shuffled.row(cell, index))

    def grade(self, messages: Messages, answer: str) -> Grade:
        return self._task.grade(messages, answer)
