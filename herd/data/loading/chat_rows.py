"""The training chats of a data folder, read one by one, and how many tokens each has in a model's format.

The counts are made once for a table and a model and kept beside the data (in the cache where the folder cannot be
written to): a run that starts reads them and tokenises nothing.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from herd.core.files import cache_folder, lock_folder, naming_full_disk, work_folder
from herd.core.progress import progress_bar
from herd.data.loading import tables
from herd.data.loading.table_rows import TableRows, training_numbers
from herd.data.tokens.shards import table_hash

FORMAT = 1
READ, SHOWS, UNSEEN, REFUSED = range(4)
"""Of a chat: text alone; with pictures or clips; with some that the model does not see; not in the model's format."""
COUNTS = np.dtype([("tokens", "<i4", 2), ("first", "<i4", 2), ("kind", "u1")])
"""With pictures cut into tiles and with whole ones: the tokens, and the place of the first that is learnt, or -1; and
what the chat is."""


@dataclass(frozen=True, kw_only=True)
class TrainingChat:
    """A conversation to learn, and the tools that it offers."""

    number: int
    """Among the training chats, which decides how its pictures are cut."""
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)


class TrainingChats:
    """The training chats of a data folder; memory holds those that were read last, and 8 bytes for each."""

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / "chats.parquet"
        columns = tables.check_columns(path, ["split", "messages"])
        self._rows = TableRows(path, [name for name in ("messages", "tools") if name in columns])
        self._numbers = training_numbers(path)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> TrainingChat:
        row = self._rows[int(self._numbers[number])]
        return TrainingChat(
            number=number, messages=json.loads(row["messages"]), tools=json.loads(row.get("tools") or "[]")
        )

    def __iter__(self) -> Iterator[TrainingChat]:
        return map(self.__getitem__, range(len(self)))


def chat_counts(
    chats: TrainingChats, model: str, count: Callable[[TrainingChat], tuple[list[int], list[int], int]]
) -> np.ndarray:
    """COUNTS of each training chat, as `count` gives them; `model` names all that they depend on beside the data."""
    folder = chats.folder
    there = [name for name in ("chats", "pictures", "clips") if tables.has(folder, name)]
    hashes = [table_hash(folder / f"{name}.parquet") for name in there]
    key = hashlib.sha256(json.dumps([FORMAT, model, hashes]).encode()).hexdigest()[:16]
    name = f"chat-lengths-{key}.npy"
    places = [folder / name, cache_folder() / "chats" / name]
    for place in places:
        if place.exists():
            found: np.ndarray = np.load(place)
            return found
    place = places[0] if os.access(folder, os.W_OK) else places[1]
    place.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(work := work_folder(place), wait=True):
        if not place.exists():  # else another process has written it meanwhile
            counts = np.empty(len(chats), COUNTS)
            with progress_bar("chats: lengths", len(chats)) as bar:
                for chat in chats:
                    counts[chat.number] = count(chat)
                    bar.advance()
            with naming_full_disk(work):
                np.save(work / name, counts)
            os.replace(work / name, place)
        shutil.rmtree(work, ignore_errors=True)
    return np.load(place)


def turns_of(chat: TrainingChat) -> list[list[dict[str, Any]]]:
    """From one message of the user to before the next."""
    begins = [at for at, one in enumerate(chat.messages) if one["role"] == "user"]
    return [chat.messages[begin:end] for begin, end in pairwise([*begins, len(chat.messages)])]


def window_of(chat: TrainingChat, begin: int, end: int) -> TrainingChat:
    """Some turns of a chat behind its system message."""
    system = [one for one in chat.messages if one["role"] == "system"]
    return replace(chat, messages=[*system, *chain.from_iterable(turns_of(chat)[begin:end])])
