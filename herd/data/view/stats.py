"""What a data folder holds, in numbers. Tables are read batch by batch, only the columns that are counted."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import compute, parquet

from herd.data.loading.tables import rows
from herd.data.media.image import picture_size
from herd.data.view.items import tables_of
from herd.errors import HerdError

QUANTILES = (0.5, 0.95, 1.0)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of figures: column names, and rows of text and numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def as_json(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def stats(folder: Path) -> list[Table]:
    """Figures of each table that the folder has. Raises HerdError where it has none."""
    found = [COUNTED[name](folder / f"{name}.parquet") for name in tables_of(folder)]
    if not found:
        raise HerdError(f"{folder} has no table that is known: is it a data folder?")
    return found


def quantiles(values: Sequence[int]) -> list[int]:
    """The median, the 95th percentile and the largest value."""
    return [int(value) for value in np.quantile(np.asarray(values), QUANTILES, method="inverted_cdf")]


def _text(path: Path) -> Table:
    """Documents by language, source and split. Sizes are UTF-8 bytes."""
    sizes: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    repeats: Counter[tuple[str, str, str]] = Counter()
    with parquet.ParquetFile(path) as file:
        repeated = "repeat" in file.schema_arrow.names
        columns = ["language", "source", "split", "text", *(["repeat"] if repeated else [])]
        for batch in file.iter_batches(1024, columns=columns):
            lengths = compute.binary_length(batch["text"]).to_pylist()
            keys = list(zip(*(batch[name].to_pylist() for name in columns[:3]), strict=True))
            times = batch["repeat"].to_pylist() if repeated else [1] * len(keys)
            for key, length, count in zip(keys, lengths, times, strict=True):
                sizes[key].append(length)
                repeats[key] += count
    table = Table(
        title="text",
        columns=(
            *("language", "source", "split", "documents", "an epoch", "bytes"),
            *("median", "p95", "largest"),
        ),
    )
    for key in sorted(sizes):
        table.rows.append((*key, len(sizes[key]), repeats[key], sum(sizes[key]), *quantiles(sizes[key])))
    return table


def _chats(path: Path) -> Table:
    """Chats by kind, language and split."""
    turns: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    seen: Counter[tuple[tuple[str, str, str], str]] = Counter()
    for row in rows(path, ["kind", "language", "split", "messages"]):
        key, messages = (row["kind"], row["language"], row["split"]), json.loads(row["messages"])
        turns[key].append(sum(message["role"] == "assistant" for message in messages))
        for what in _traits(messages):
            seen[key, what] += 1
    table = Table(
        title="chats",
        columns=("kind", "language", "split", "chats", "answers", "answers max", *TRAITS),
    )
    for key in sorted(turns):
        counts = [seen[key, what] for what in TRAITS]
        table.rows.append((*key, len(turns[key]), sum(turns[key]), max(turns[key]), *counts))
    return table


TRAITS = ("with system", "with tool calls", "with pictures", "with video")


def _traits(messages: Sequence[Mapping[str, Any]]) -> set[str]:
    """Which of TRAITS a chat has."""
    found = {"with system" for message in messages if message["role"] == "system"}
    found |= {"with tool calls" for message in messages if message.get("tool_calls")}
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    kinds = {"image": "with pictures", "video": "with video"}
    return found | {kinds[part["type"]] for part in parts if part["type"] in kinds}


def _pictures(path: Path) -> Table:
    """Pictures by source and split. Sizes are the longer side in pixels."""
    sides: dict[tuple[str, str], list[int]] = defaultdict(list)
    named: Counter[tuple[str, str]] = Counter()
    for row in rows(path, ["source", "split", "names", "captions", "png"]):
        key = (row["source"], row["split"])
        sides[key].append(max(picture_size(row["png"])))
        named[key] += any(row[column] not in (None, "", "{}") for column in ("names", "captions"))
    table = Table(
        title="pictures",
        columns=("source", "split", "pictures", "with words", "side median", "p95", "largest"),
    )
    for key in sorted(sides):
        table.rows.append((*key, len(sides[key]), named[key], *quantiles(sides[key])))
    return table


def _clips(path: Path) -> Table:
    """Clips by split."""
    frames: dict[str, list[int]] = defaultdict(list)
    for row in rows(path, ["split", "seconds"]):
        frames[row["split"]].append(len(row["seconds"]))
    table = Table(title="clips", columns=("split", "clips", "frames", "frames max"))
    for split in sorted(frames):
        table.rows.append((split, len(frames[split]), sum(frames[split]), max(frames[split])))
    return table


def _prompts(path: Path) -> Table:
    """Prompts, or preferences, by source and split."""
    counts = Counter((row["source"], row["split"]) for row in rows(path, ["source", "split"]))
    table = Table(title=path.stem, columns=("source", "split", path.stem))
    table.rows.extend((*key, counts[key]) for key in sorted(counts))
    return table


COUNTED = {
    "text": _text,
    "chats": _chats,
    "preferences": _prompts,
    "prompts": _prompts,
    "pictures": _pictures,
    "clips": _clips,
}
