"""What evaluation reads from a data folder: texts, pictures, clips and chats, each table when it is first needed.

A data folder may lack any of its tables. One that is absent is empty, and the sections that need it are left out.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from herd.core.errors import HerdError
from herd.core.files import read_json
from herd.core.streams import seed_of
from herd.data.chats import Chat

TRAIN = "train"
"""The split that models are trained on; all others are held out."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One row of pictures.parquet."""

    id: str
    split: str
    names: dict[str, str]
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One row of clips.parquet: frames as PNG, each with its second."""

    id: str
    frames: list[bytes]
    seconds: list[float]


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

    def _rows(self, name: str, columns: list[str], *, optional: list[str] | None = None) -> list[dict[str, Any]]:
        """These columns of a table, the optional ones where it has them; no rows where there is no table."""
        path = self.path / f"{name}.parquet"
        if not path.exists():
            return []
        present = parquet.read_schema(path).names
        if missing := [column for column in columns if column not in present]:
            raise HerdError(f"{path} lacks the column {', '.join(missing)}: it needs {', '.join(columns)}")
        columns = columns + [column for column in optional or [] if column in present]
        rows: list[dict[str, Any]] = parquet.read_table(path, columns=columns).to_pylist()
        return rows


def _by_language(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row["language"], []).append(row["text"])
    return texts
