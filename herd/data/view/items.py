"""The rows of a data folder as a model reads them: tokens with the loss mask, pictures and frames cut into tiles.

Without a model the folder's own tokenizer reads the text, in Llama 4's chat format, and pictures are whole. Rows are
read from Parquet batch by batch, so that the first ones of a large table cost little.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from pyarrow import parquet

from herd.core.lineage import check_exists
from herd.data.loading import tables
from herd.data.media.image import ImageProcessor, Tiles, read_picture
from herd.data.tokens.chat import parts_of, render_messages
from herd.data.tokens.text_stream import TextStream
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError, unknown

MAX_FRAMES = 16
"""Frames of a clip that are shown, evenly spaced."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """What one token stands for, or a run of equal special tokens."""

    text: str
    learnt: bool = False
    special: bool = False


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One row."""

    table: str
    id: str
    facts: dict[str, str] = field(default_factory=dict)
    """Its other columns, such as split, language and source."""
    spans: list[Span] = field(default_factory=list)
    num_tokens: int = 0
    pictures: list[Image.Image] = field(default_factory=list)
    note: str = ""
    """What is not shown, and why a stage would leave the row out."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """The tokenizer and the image processor that the rows are read with."""

    tokenizer: Tokenizer
    processor: ImageProcessor


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which rows are shown; an empty field takes any."""

    split: str = ""
    language: str = ""
    source: str = ""
    kind: str = ""
    id: str = ""

    def takes(self, row: Mapping[str, Any]) -> bool:
        asked = {name: value for name, value in vars(self).items() if value}
        return all(name in row and row[name] == value for name, value in asked.items())


def tables_of(folder: Path) -> list[str]:
    """The tables that can be shown and that the folder has. Raises HerdError where there is no such folder."""
    check_exists(folder)
    return [name for name in SHOWN if tables.has(folder, name)]


def find(folder: Path, table: str, wanted: Wanted, reader: Reader, *, skip: int = 0, num: int = 3) -> Iterator[Shown]:
    """`num` rows of a table after `skip` of those that are wanted.

    Raises HerdError for a table that the folder does not have.
    """
    found = tables_of(folder)
    if table not in found:
        raise unknown("table", table, found) if found else HerdError(f"{folder} has no table: is it a data folder?")
    for count, row in enumerate(row for row in tables.rows(folder / f"{table}.parquet") if wanted.takes(row)):
        if count >= skip + num:
            return
        if count >= skip:
            yield SHOWN[table](folder, row, reader)


def spans_of(tokenizer: Tokenizer, ids: list[int], learnt: list[bool]) -> list[Span]:
    """Tokens as text. A character that several tokens share is shown with the last of them."""
    names = {index: name for name, index in tokenizer.special.items()} if tokenizer.template is None else {}
    stream, spans, at = TextStream(tokenizer), [], 0
    while at < len(ids):
        token = ids[at]
        if token not in tokenizer.special_ids:
            spans.append(Span(text=stream.push(token), learnt=learnt[at]))
            at += 1
            continue
        if rest := stream.finish():
            spans.append(Span(text=rest, learnt=learnt[at]))
        stream, begin = TextStream(tokenizer), at
        while at < len(ids) and (ids[at], learnt[at]) == (token, learnt[begin]):
            at += 1
        name = names.get(token) or tokenizer.decode([token], skip_special=False)
        times = f" x {at - begin}" if at - begin > 1 else ""
        spans.append(Span(text=f"{name}{times}", learnt=learnt[begin], special=True))
    if rest := stream.finish():
        spans.append(Span(text=rest, learnt=learnt[-1]))
    return spans


def _facts(row: Mapping[str, Any], *names: str) -> dict[str, str]:
    return {name: str(row[name]) for name in names if row.get(name) not in (None, "")}


def _text(folder: Path, row: Mapping[str, Any], reader: Reader) -> Shown:
    ids = reader.tokenizer.encode(row["text"])
    return Shown(
        table="text",
        id=row["id"],
        facts=_facts(row, "split", "language", "source", "repeat"),
        spans=spans_of(reader.tokenizer, ids, [True] * len(ids)),
        num_tokens=len(ids),
    )


def _chat(folder: Path, row: Mapping[str, Any], reader: Reader) -> Shown:
    facts = _facts(row, "split", "kind", "language", "source", "answer", "verifier")
    return _conversation("chats", folder, row, json.loads(row["messages"]), reader, facts)


def _prompt(folder: Path, row: Mapping[str, Any], reader: Reader) -> Shown:
    facts = _facts(row, "split", "source", "answer", "verifier")
    return _conversation("prompts", folder, row, json.loads(row["prompt"]), reader, facts)


def _preference(folder: Path, row: Mapping[str, Any], reader: Reader) -> Shown:
    """The preferred answer, then the rejected one."""
    facts, asked = _facts(row, "split", "source"), json.loads(row["prompt"])
    chosen, rejected = (
        _conversation("preferences", folder, row, [*asked, *json.loads(row[name])], reader, facts)
        for name in ("chosen", "rejected")
    )
    apart = Span(text="\n\nrejected:\n\n", special=True)
    return replace(
        chosen,
        spans=[*chosen.spans, apart, *rejected.spans],
        num_tokens=chosen.num_tokens + rejected.num_tokens,
        note=chosen.note or rejected.note,
    )


def _conversation(
    table: str,
    folder: Path,
    row: Mapping[str, Any],
    said: list[dict[str, Any]],
    reader: Reader,
    facts: dict[str, str],
) -> Shown:
    messages, note = _opened(folder, said, reader)
    tools = json.loads(row["tools"]) if row.get("tools") else ()
    try:
        rendered = render_messages(
            reader.tokenizer, reader.processor, messages, tools=tools, add_generation_prompt=False
        )
    except HerdError as error:  # a stage leaves it out and counts it
        return Shown(table=table, id=row["id"], facts=facts, note=f"left out of training: {error}")
    return Shown(
        table=table,
        id=row["id"],
        facts=facts,
        spans=spans_of(reader.tokenizer, rendered.ids, rendered.learnt),
        num_tokens=len(rendered.ids),
        pictures=[seen for tiles in rendered.tiles for seen in tile_pictures(tiles)],
        note=note,
    )


def _opened(folder: Path, messages: list[dict[str, Any]], reader: Reader) -> tuple[list[dict[str, Any]], str]:
    """The messages with their pictures and clips read; in words where the reader sees none."""
    sees = reader.processor.reads_pictures

    def opened(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "image" and sees:
            return {"type": "image", "image": read_picture(_row(folder, "pictures", part["picture"])["png"])}
        if part["type"] == "video" and sees:
            clip = _row(folder, "clips", part["clip"])
            frames = zip(clip["seconds"], map(read_picture, clip["frames"]), strict=True)
            return {"type": "video", "frames": list(frames)}
        if part["type"] in {"image", "video"}:
            return {"type": "text", "text": f"[{part['type']} {part.get('picture') or part.get('clip')}]"}
        return part

    shown = [{**message, "content": [opened(part) for part in parts_of(message)]} for message in messages]
    hidden = not sees and any(part["type"] in {"image", "video"} for m in messages for part in parts_of(m))
    return shown, "its pictures are named only: give a model that sees them with --model" if hidden else ""


def _row(folder: Path, table: str, identity: str) -> dict[str, Any]:
    path = folder / f"{table}.parquet"
    if not path.exists():
        raise HerdError(f"{path} is missing, and a chat shows {identity!r} of it: write the data folder again")
    found: list[dict[str, Any]] = parquet.read_table(path, filters=[("id", "=", identity)]).to_pylist()
    if not found:
        raise HerdError(f"{path} has no {identity!r}, which a chat shows: write the data folder again")
    return found[0]


def tile_pictures(tiles: Tiles) -> list[Image.Image]:
    """The tiles as the model sees them, the whole picture last."""
    return [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in tiles.pixels]


def _picture(folder: Path, row: Mapping[str, Any], reader: Reader) -> Shown:
    picture = read_picture(row["png"])
    facts = _facts(row, "split", "source", "subject")
    facts |= {"size": f"{picture.width} x {picture.height}", **_named(row)}
    if not reader.processor.reads_pictures:
        return Shown(table="pictures", id=row["id"], facts=facts, pictures=[picture])
    tiles = reader.processor.tiles(picture)
    facts["tiles"] = f"{tiles.rows} x {tiles.columns}" + (" and the whole" if len(tiles.pixels) > 1 else "")
    num_tokens = len(reader.processor.tokens(tiles))
    return Shown(table="pictures", id=row["id"], facts=facts, pictures=tile_pictures(tiles), num_tokens=num_tokens)


def _clip(folder: Path, row: Mapping[str, Any], reader: Reader) -> Shown:
    count = len(row["frames"])
    chosen = [i * count // min(count, MAX_FRAMES) for i in range(min(count, MAX_FRAMES))]
    frames = [read_picture(row["frames"][i]) for i in chosen]
    facts = _facts(row, "split", "source", "subject") | {
        "frames": str(count),
        "seconds": " ".join(f"{row['seconds'][i]:.1f}" for i in chosen),
        **_named(row),
    }
    if reader.processor.reads_pictures:
        frames = [seen for frame in frames for seen in tile_pictures(reader.processor.tiles(frame))]
    note = f"{len(chosen)} of {count} frames are shown" if len(chosen) < count else ""
    return Shown(table="clips", id=row["id"], facts=facts, pictures=frames, note=note)


def _named(row: Mapping[str, Any]) -> dict[str, str]:
    """Names and captions, each with its language."""
    return {
        column: "; ".join(f"{language}: {text}" for language, text in json.loads(row[column]).items())
        for column in ("names", "captions")
        if row.get(column) not in (None, "", "{}")
    }


SHOWN: dict[str, Callable[[Path, Mapping[str, Any], Reader], Shown]] = {
    "text": _text,
    "chats": _chat,
    "preferences": _preference,
    "prompts": _prompt,
    "pictures": _picture,
    "clips": _clip,
}
"""The tables, and how a row of each becomes what is shown."""
