"""The evaluation sets that documents of a data folder are compared with: what is held out in its tables of chats,
prompts, preferences, pictures and clips, and what the long evaluations ask.

Held-out documents are no such set: near duplicates of them are removed before they are held out, but documents of one
manual share sentences, and would all be dropped.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from herd.data.loading import tables
from herd.data.packages.evaluation_sets import long_text_sets
from herd.data.sources.fetch import Pack
from herd.data.sources.messages import text_of
from herd.data.text.contamination import Item
from herd.stages.data_packages import PACKAGES

TRAIN = "train"


def evaluation_sets(work: Path, novel: Pack | None, *, chats: bool = True) -> dict[str, list[Item]]:
    """Names and items of all sets, from the tables in `work`; without `chats`, those of chats.parquet are left out.
    `novel` is the package of the book."""
    sets = long_text_sets(novel)
    held = [*_prompts(work), *_preferences(work), *_captions(work), *(_chats(work) if chats else ())]
    for name, item in held:
        sets.setdefault(name, []).append(item)
    return sets


def chat_item(row: Mapping[str, Any]) -> tuple[str, str]:
    """The set of a row of chats.parquet, and its text: question and answer."""
    name = f"{PACKAGES}, {row['kind']}" if row["source"] == PACKAGES else row["source"]
    return name, _text(row["messages"])


def _text(messages: str) -> str:
    return "\n".join(text_of(message) for message in json.loads(messages))


def _held_out(work: Path, table: str, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    if tables.has(work, table):
        for row in tables.rows(work / f"{table}.parquet", ["split", *columns]):
            if row["split"] != TRAIN:
                yield row


def _chats(work: Path) -> Iterator[tuple[str, str]]:
    return map(chat_item, _held_out(work, "chats", ["source", "kind", "messages"]))


def _prompts(work: Path) -> Iterator[tuple[str, str]]:
    for row in _held_out(work, "prompts", ["source", "prompt", "answer"]):
        yield row["source"], f"{_text(row['prompt'])}\n{row['answer']}"


def _preferences(work: Path) -> Iterator[tuple[str, str]]:
    for row in _held_out(work, "preferences", ["source", "prompt", "chosen"]):
        yield row["source"], f"{_text(row['prompt'])}\n{_text(row['chosen'])}"


def _captions(work: Path) -> Iterator[tuple[str, str]]:
    """Captions and names of held-out pictures and clips, in each language; but for pictures that are held out for
    their style, whose names are trained on."""
    for row in _held_out(work, "pictures", ["source", "names", "captions"]):
        if row["split"] != "styles":
            for text in sorted({*json.loads(row["names"]).values(), *json.loads(row["captions"]).values()}):
                yield f"{row['source']}, captions", text
    for row in _held_out(work, "clips", ["names"]):
        for text in sorted(set(json.loads(row["names"]).values())):
            yield "clips, captions", text
