"""What evaluation reads from a data folder: texts, pictures and chats, in the order of their ids."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from herd.core.errors import HerdError
from herd.core.streams import seed_of
from herd.data.chats import Chat


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


def _rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        raise HerdError(f"{path} is missing: write the data folder again with `herd data`")
    rows: list[dict[str, Any]] = parquet.read_table(path, columns=columns).to_pylist()
    return rows


def read_texts(data: Path) -> dict[str, dict[str, list[str]]]:
    """Texts by split and language, by document id."""
    texts: dict[str, dict[str, list[str]]] = {}
    for row in sorted(_rows(data / "text.parquet", ["id", "split", "language", "text"]), key=lambda row: row["id"]):
        texts.setdefault(row["split"], {}).setdefault(row["language"], []).append(row["text"])
    return texts


def read_pictures(data: Path) -> list[Picture]:
    """All pictures, in an order drawn by a hash of the id: the first n are a fair sample."""
    rows = _rows(data / "pictures.parquet", ["id", "split", "names", "png"])
    pictures = [
        Picture(id=row["id"], split=row["split"], names=json.loads(row["names"]), png=row["png"]) for row in rows
    ]
    return sorted(pictures, key=lambda picture: (seed_of(0, "evaluate", picture.id), picture.id))


def read_clips(data: Path) -> dict[str, Clip]:
    """All clips by id; none when the data folder has no clips."""
    path = data / "clips.parquet"
    rows = _rows(path, ["id", "frames", "seconds"]) if path.exists() else []
    return {row["id"]: Clip(**row) for row in rows}


def read_chats(data: Path) -> list[Chat]:
    """All chats, in an order drawn by a hash of the id."""
    path, columns = data / "chats.parquet", ["id", "split", "kind", "language", "messages", "answer"]
    if path.exists() and "verifier" in parquet.read_schema(path).names:  # older data folders have none
        columns.append("verifier")
    rows = _rows(path, columns)
    chats = [Chat(**{**row, "messages": json.loads(row["messages"])}) for row in rows]
    return sorted(chats, key=lambda chat: (seed_of(0, "evaluate", chat.id), chat.id))
