"""What the user's own sources give to a data folder: documents, chats with their pictures, preferences and prompts."""

import base64
import binascii
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from herd.config import ChatSource, DataConfig, ImageSource, SourceConfig, VideoSource
from herd.core.inputs import InputFile
from herd.data.loading import tables
from herd.data.media.image import read_picture
from herd.data.sources.captioned import media_files
from herd.data.sources.chats import Chats, SourceChat
from herd.data.sources.detect import KINDS, skip_unread
from herd.data.sources.media_names import SUFFIXES
from herd.data.sources.messages import Skip, text_of, with_pictures
from herd.data.sources.preferences import Preferences
from herd.data.sources.prompts import Prompts
from herd.data.sources.readers import files_of
from herd.data.sources.source import Notes
from herd.data.tasks.gym import Problem
from herd.data.text.documents import digest
from herd.data.text.languages import MIN_IDENTIFIED, detect
from herd.data.text.splits import held_out
from herd.errors import HerdError

Facts = dict[str, Any]
CHAT, UNKNOWN_LANGUAGE = "chat", "und"
"""The kind of a chat of the user's; a language that cannot be identified, as in ISO 639."""
DUPLICATES = "chats that are there already"


@dataclass(kw_only=True)
class OwnSources:
    """The sources that a config names, with their files as they are when the build begins."""

    cfg: DataConfig
    files: dict[str, list[InputFile]] = field(default_factory=dict)
    notes: dict[str, Notes] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Rows that are used, by source and split."""

    def __post_init__(self) -> None:
        for source in self.cfg.sources:
            self.notes[source.name] = Notes()
            self.files[source.name] = source_files(source, self.notes[source.name])
            self.counts[source.name] = Counter()

    def check_unchanged(self) -> None:
        """Raise HerdError where a file has changed since the build began."""
        for files in self.files.values():
            for file in files:
                file.check_unchanged()

    def chats(self, pictures: tables.Writer) -> Iterator[dict[str, Any]]:
        """Rows of chats.parquet, each chat once; the pictures that they show go to `pictures`."""
        seen: set[str] = set()
        shelf = _Shelf(pictures, self.cfg.picture_px)
        for source in self.cfg.chats:
            notes, first = self.notes[source.name], True
            for chat in Chats(source, self.files[source.name], notes):
                row = self._chat_row(chat, source, shelf)
                if row is None or row["id"] in seen:
                    if row is not None:
                        notes.skip(DUPLICATES, chat.place)
                    continue
                seen.add(row["id"])
                if first:  # so that there is one to train on, however few there are
                    row["split"], first = "train", False
                self.counts[source.name][row["split"]] += 1
                yield row

    def _chat_row(self, chat: SourceChat, source: ChatSource, shelf: "_Shelf") -> dict[str, Any] | None:
        try:
            messages = with_pictures(chat.messages, lambda image: shelf.keep(image, chat.folder, source.name))
        except Skip as skip:
            self.notes[source.name].skip(str(skip), chat.place, skip.detail)
            return None
        asked = next(text_of(one) for one in messages if one["role"] == "user")
        said, tools = tables.to_json(messages), tables.to_json(chat.tools) if chat.tools else ""
        return {
            "id": digest(said + tools),
            "split": self.split(asked),
            "kind": CHAT,
            "language": language_of("\n".join(text_of(one) for one in messages)),
            "messages": said,
            "answer": chat.answer,
            "verifier": self._verifier(chat, source),
            "source": source.name,
            "tools": tools,
        }

    def _verifier(self, chat: SourceChat, source: ChatSource) -> str:
        """The verifier of a chat, if it names a problem of reasoning-gym; any other is not known here, and counted."""
        if not chat.verifier or not chat.answer:
            return ""
        try:
            return Problem.from_json(chat.verifier).to_json()
        except HerdError:
            reason = "chats whose verifier is no problem of reasoning-gym: answers are compared with answer"
            self.notes[source.name].change(reason, chat.place, chat.verifier[:60])
            return ""

    def preferences(self) -> Iterator[dict[str, Any]]:
        """Rows of preferences.parquet."""
        for source in self.cfg.preferences:
            for one in Preferences(source, self.files[source.name], self.notes[source.name]):
                said = {name: tables.to_json(getattr(one, name)) for name in ("prompt", "chosen", "rejected")}
                split = self.split(said["prompt"])
                self.counts[source.name][split] += 1
                tools = tables.to_json(one.tools) if one.tools else ""
                yield {
                    "id": digest("".join(said.values())),
                    "split": split,
                    "source": source.name,
                    **said,
                    "tools": tools,
                }

    def prompts(self) -> Iterator[dict[str, Any]]:
        """Rows of prompts.parquet."""
        for source in self.cfg.prompts:
            for one in Prompts(source, self.files[source.name], self.notes[source.name]):
                prompt = tables.to_json(one.prompt)
                split = self.split(prompt)
                self.counts[source.name][split] += 1
                row = {"id": digest(prompt), "split": split, "source": source.name, "prompt": prompt}
                yield {**row, "answer": one.answer, "verifier": one.rules}

    def drop_contaminated(self, row: Mapping[str, Any], found: tuple[str, str]) -> None:
        """Count a training chat that is left out, as it has a passage of the item `found` of an evaluation set."""
        self.counts[row["source"]]["train"] -= 1
        asked = next(text_of(one) for one in json.loads(row["messages"]) if one["role"] == "user")
        self.notes[row["source"]].skip("chats with a passage of an evaluation set", asked[:80], ": ".join(found))

    def split(self, place: str) -> str:
        """`train` or `heldout`, by a hash of what tells a row from others."""
        return "heldout" if held_out("source", place, share=self.cfg.heldout_pairs) else "train"

    def state(self) -> Facts:
        """What was counted so far, for a run that goes on without reading the files again."""
        return {name: {"counts": dict(self.counts[name]), **vars(notes)} for name, notes in self.notes.items()}

    def restore(self, state: Facts) -> None:
        """Take up what an earlier attempt had counted."""
        for name, of in state.items():
            counts = {key: Counter(of[key]) for key in ("skipped", "changed")}
            self.counts[name], self.notes[name] = Counter(of["counts"]), Notes(places=of["places"], **counts)

    def unread(self) -> Facts:
        """The files in the folders of --from that no source reads, for the data card."""
        notes = Notes()
        read = {file.path for files in self.files.values() for file in files}
        noted = {source.path for source in self.cfg.sources if not isinstance(source, (ImageSource, VideoSource))}
        for path in self.cfg.found_in:
            if path not in noted:  # else they are among the notes of the source
                skip_unread(path, read, notes)
        return notes.as_json()

    def settings(self) -> dict[str, Facts]:
        """sources.json: how much each source counts in training."""
        return {
            source.name: {"weight": source.weight, "max_epochs": source.max_epochs, "licence": source.licence}
            for source in self.cfg.sources
        }

    def facts(self) -> list[Facts]:
        """The sources for the data card."""
        return [
            {
                "name": source.name,
                "client": "files",
                "version": "",
                "licence": source.licence or "not given",
                "what": what_is(source),
                "status": "used",
                "reason": "",
                "path": source.path,
                "files": len(self.files[source.name]),
                "bytes": sum(file.size for file in self.files[source.name]),
                "rows": dict(self.counts[source.name]),
                **self.notes[source.name].as_json(),
            }
            for source in self.cfg.sources
        ]


def what_is(source: SourceConfig) -> str:
    """The kind of a source, in a word."""
    return next(kind for kind, of in KINDS.items() if type(source) is of)


def source_files(source: SourceConfig, notes: Notes) -> list[InputFile]:
    """The files of a source. Raises HerdError where none can be read."""
    if isinstance(source, (ImageSource, VideoSource)):
        return media_files(source.path, SUFFIXES[what_is(source)])
    return files_of(source.path, notes)


def language_of(text: str) -> str:
    """The language that a chat is in, `und` where it is too short to tell."""
    language, probability = detect(text)
    return language if probability >= MIN_IDENTIFIED else UNKNOWN_LANGUAGE


class _Shelf:
    """The pictures that chats show, each kept once."""

    def __init__(self, table: tables.Writer, longest_px: int) -> None:
        self._table, self._longest_px = table, longest_px
        self._names: dict[str, str] = {}

    def keep(self, image: Any, folder: Path, source: str) -> str:
        """Keep a picture, scaled to the config's size; returns its id. Raises Skip where it cannot be read."""
        data = _picture_bytes(image, folder)
        key = digest(data if isinstance(data, str) else data.hex())
        if key not in self._names:
            try:
                picture = read_picture(data)
            except HerdError as error:
                raise Skip("chats with a picture that cannot be read", str(error)) from None
            picture.thumbnail((self._longest_px, self._longest_px))
            out = io.BytesIO()
            picture.save(out, "PNG")
            name = f"{source}/{digest(out.getvalue().hex())}"
            if name not in self._names.values():
                row = {"id": name, "split": "train", "source": source, "subject": "", "png": out.getvalue()}
                self._table.add({**row, "names": "{}", "captions": "{}"})
            self._names[key] = name
        return self._names[key]


def _picture_bytes(image: Any, folder: Path) -> bytes | str:
    """A picture's bytes, or the path of its file. Raises Skip."""
    if isinstance(image, dict):  # as `datasets` stores one
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str):
        raise Skip("chats with a picture that is neither a path nor bytes", type(image).__name__)
    if image.startswith("data:"):
        try:
            return base64.b64decode(image.partition(",")[2], validate=True)
        except binascii.Error:
            raise Skip("chats with a picture that cannot be read", f"{image[:40]}: not base64") from None
    if image.startswith(("http://", "https://")):
        raise Skip("chats with a picture at an address, which is not fetched: give a path", image)
    path = unquote(urlparse(image).path) if image.startswith("file://") else image
    return str(folder / path)
