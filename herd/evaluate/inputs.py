"""What evaluation reads from a data folder: texts, pictures, clips and chats, each table when it is first needed.

A data folder may lack any of its tables. One that is absent is empty, and the sections that need it are left out.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from herd.core.files import read_json
from herd.core.streams import seed_of
from herd.data.loading import tables
from herd.data.loading.tables import Clip, Picture
from herd.data.tasks.chats import Chat

TRAIN = "train"
"""The split that models are trained on; all others are held out."""


class DataFolder:
    """The tables of a data folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def card(self) -> dict[str, Any]:
        """The data card; empty where there is none."""
        path = self.path / "herd.json"
        return dict(read_json(path).get("card", {})) if path.exists() else {}

    @cached_property
    def training_texts(self) -> dict[str, list[str]]:
        """Documents by language, in the order of their ids."""
        return _by_language([row for row in self._texts if row["split"] == TRAIN])

    @cached_property
    def heldout_texts(self) -> dict[str, list[str]]:
        """Documents by language, in the order of their ids."""
        return _by_language([row for row in self._texts if row["split"] != TRAIN])

    @cached_property
    def pictures(self) -> list[Picture]:
        """All pictures, in an order drawn by a hash of the id: the first n are a fair sample."""
        pictures = [
            Picture(**{**row, "names": json.loads(row["names"])})
            for row in self._rows("pictures", ["id", "split", "names", "png"])
        ]
        return sorted(pictures, key=lambda picture: (seed_of(0, "evaluate", picture.id), picture.id))

    @cached_property
    def clips(self) -> dict[str, Clip]:
        """All clips by id."""
        return {row["id"]: Clip(**row) for row in self._rows("clips", ["id", "frames", "seconds"])}

    @cached_property
    def chats(self) -> list[Chat]:
        """All chats, in an order drawn by a hash of the id."""
        columns = ["id", "split", "kind", "language", "messages", "answer"]
        rows = self._rows("chats", columns, optional=["verifier"])
        chats = [Chat(**{**row, "messages": json.loads(row["messages"])}) for row in rows]
        return sorted(chats, key=lambda chat: (seed_of(0, "evaluate", chat.id), chat.id))

    @cached_property
    def _texts(self) -> list[dict[str, Any]]:
        return sorted(self._rows("text", ["id", "split", "language", "text"]), key=lambda row: str(row["id"]))

    def _rows(self, name: str, columns: list[str], *, optional: Sequence[str] = ()) -> list[dict[str, Any]]:
        """No rows where there is no table."""
        exists = (self.path / f"{name}.parquet").exists()
        return tables.read(self.path, name, columns, optional=optional) if exists else []


def _by_language(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row["language"], []).append(row["text"])
    return texts
