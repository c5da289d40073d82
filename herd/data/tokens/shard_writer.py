"""A data folder's text to token shards, in blocks of documents: by one process on all cores, or by several workers.

What makes a block and a shard depends on the rows alone, so any number of workers writes the same bytes. A worker that
is killed is replaced and its blocks are done again. Of a run that was killed the whole shards are kept: the same call
goes on after the last one. The folder appears under its name when all of it is written.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as compute

from herd.core.files import lock_folder, naming_full_disk, read_json, sha256, sync, work_folder, write_json
from herd.core.progress import ProgressBar, progress_bar
from herd.core.workers import ONE, Workers
from herd.data.tokens.shards import COLUMNS, FOLDERS, FORMAT, MANIFEST, open_table, table_hash, tokenizer_hash
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError

SHARD_BYTES = 2**28
"""A shard ends with the block that reaches this size."""
BLOCK_BYTES = 2**20
"""A block ends with the document that reaches this size, in bytes of text."""
ROWS = 256
"""Rows that are read at a time."""
REQUEST = "request.json"
SOURCES = "sources.json"
"""What a data folder may say of its sources: {name: {"weight", "max_epochs", "licence"}}."""
_SOURCE = {"weight": 1.0, "max_epochs": 0.0, "licence": ""}


@dataclass(kw_only=True)
class Block:
    """Documents that are encoded together, and what the index has of each."""

    texts: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Bytes of each text."""
    next_row: int = 0
    """The row after the last one that was read for it."""


def write_shards(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    table: str = "text",
    out: Path | None = None,
    workers: Workers = ONE,
    shard_bytes: int = SHARD_BYTES,
    quiet: bool = False,
) -> Path:
    """Write the tokens of a table of the data folder `folder`, by default to its `tokens`, which is returned. One
    worker encodes on all cores."""
    out = folder / FOLDERS[table] if out is None else out
    request = {
        "format": FORMAT,
        "tokenizer": tokenizer_hash(tokenizer),
        "table": table,
        "table_hash": table_hash(folder / f"{table}.parquet"),
        "shard_bytes": shard_bytes,
        "block_bytes": BLOCK_BYTES,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(work := work_folder(out), wait=True):
        if (out / MANIFEST).exists() and read_json(out / MANIFEST).items() >= request.items():
            # Another process has written it meanwhile, and may have renamed the folder that was waited for.
            shutil.rmtree(work, ignore_errors=True)
            return out
        if not (work / REQUEST).exists() or read_json(work / REQUEST) != request:
            for path in work.iterdir():
                path.unlink()
            write_json(work / REQUEST, request)
        with naming_full_disk(work):
            writer = _Writer(folder, tokenizer, table, work, shard_bytes)
            writer.run(workers, quiet=quiet)
            writer.finish(request)
        shutil.rmtree(out, ignore_errors=True)
        work.rename(out)
        sync(out.parent)
    return out


def read_blocks(folder: Path, table: str, first_row: int) -> Iterator[Block]:
    """The training documents of a table from a row on, in blocks."""
    wanted = ["language", "source", "text"] + (["split"] if table == "text" else [])
    file = open_table(folder, table, wanted)
    columns = wanted + [name for name in ("repeat",) if name in file.schema_arrow.names]
    row, groups = 0, list(range(file.num_row_groups))
    while groups and row + file.metadata.row_group(groups[0]).num_rows <= first_row:
        row += file.metadata.row_group(groups.pop(0)).num_rows
    block, read_bytes = Block(), 0
    for batch in file.iter_batches(ROWS, row_groups=groups, columns=columns) if groups else ():
        sizes = compute.binary_length(batch.column("text")).to_pylist()
        for values, size in zip(batch.to_pylist(), sizes, strict=True):
            row += 1
            if row <= first_row or values.get("split", "train") != "train":
                continue
            if values["text"] is None:
                raise HerdError(f"{folder / f'{table}.parquet'} row {row - 1} has no text: write the folder again")
            block.texts.append(values["text"])
            block.languages.append(values["language"] or "")
            block.sources.append(values["source"] or "")
            block.repeats.append(values.get("repeat") or 1)
            block.rows.append(row - 1)
            block.sizes.append(size)
            read_bytes += size
            if read_bytes >= BLOCK_BYTES:
                block.next_row = row
                yield block
                block, read_bytes = Block(), 0
    if block.texts:
        block.next_row = row
        yield block


def encode_block(tokenizer: Tokenizer, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the documents end to end, and the length of each."""
    ids = tokenizer.ids
    documents = [[ids.bos, *tokens, ids.end_of_text] for tokens in tokenizer.encode_batch(block.texts)]
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    count = int(lengths.sum())
    return np.fromiter(chain.from_iterable(documents), dtype=dtype_of(tokenizer), count=count), lengths


def dtype_of(tokenizer: Tokenizer) -> str:
    """The smallest type that holds all ids."""
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


class _Writer:
    """Shards of a table in a work folder: each is a file of ids, and after it a note with its part of the index."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, table: str, work: Path, shard_bytes: int) -> None:
        self.folder, self.tokenizer, self.table, self.work = folder, tokenizer, table, work
        self.dtype = dtype_of(tokenizer)
        self.shard_bytes = shard_bytes
        self.languages: dict[str, int] = {}
        self.sources: dict[str, int] = {}
        self.notes: list[dict[str, Any]] = []

    def run(self, workers: Workers, *, quiet: bool) -> None:
        """Write what is missing of the shards."""
        first_row = self._resume()
        total = open_table(self.folder, self.table, []).metadata.num_rows
        blocks = read_blocks(self.folder, self.table, first_row)
        encoded = workers.map(
            encode_block, self.tokenizer, blocks, name=lambda block: f"rows {block.rows[0]:,} to {block.rows[-1]:,}"
        )
        with closing(encoded), progress_bar("tokens: rows", total, done=first_row, quiet=quiet) as bar:
            while self._shard(encoded, bar):
                pass

    def _resume(self) -> int:
        """Read the notes of whole shards; the row after them."""
        while (self.work / f"{len(self.notes):05}.json").exists():
            note = read_json(self.work / f"{len(self.notes):05}.json")
            if not (self.work / note["name"]).exists():
                break
            self.notes.append(note)
            self.languages = {name: index for index, name in enumerate(note["languages"])}
            self.sources = {name: index for index, name in enumerate(note["sources"])}
        return int(self.notes[-1]["next_row"]) if self.notes else 0

    def _shard(self, encoded: Iterator[tuple[Block, tuple[np.ndarray, np.ndarray]]], bar: ProgressBar) -> bool:
        """Write the next shard; False if nothing was left."""
        number = len(self.notes)
        name, index = f"train-{number:05}.bin", {column: list[np.ndarray]() for column in COLUMNS}
        sizes: list[int] = []
        size, next_row, before = 0, 0, self.notes[-1]["next_row"] if self.notes else 0
        with (self.work / name).open("wb") as file:
            for block, (tokens, lengths) in encoded:
                file.write(tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).tobytes())
                size += tokens.nbytes
                index["offsets"].append(lengths)
                index["languages"].append(_numbers(block.languages, self.languages))
                index["sources"].append(_numbers(block.sources, self.sources))
                index["repeats"].append(np.array(block.repeats))
                index["rows"].append(np.array(block.rows))
                sizes += block.sizes
                next_row = block.next_row
                bar.advance(next_row - before)
                before = next_row
                if size >= self.shard_bytes:
                    break
            file.flush()
            os.fsync(file.fileno())
        if not size:
            (self.work / name).unlink()
            return False
        parts = {column: np.concatenate(arrays).astype(COLUMNS[column]) for column, arrays in index.items()}
        np.savez(self.work / f"{number:05}.npz", **parts)  # type: ignore[arg-type]
        note = {
            "name": name,
            "bytes": size,
            "sha256": sha256(self.work / name),
            "next_row": next_row,
            "languages": list(self.languages),
            "sources": list(self.sources),
            "groups": _groups(parts, np.array(sizes), list(self.languages), list(self.sources)),
        }
        write_json(self.work / f"{number:05}.json", note)
        self.notes.append(note)
        return True

    def finish(self, request: dict[str, Any]) -> None:
        """Join the parts of the index and write the manifest."""
        item, first, most_repeats = np.dtype(self.dtype).itemsize, 0, 1
        files: dict[str, dict[str, Any]] = {}
        groups: dict[tuple[str, str], dict[str, Any]] = {}
        for note in self.notes:
            files[note["name"]] = {"bytes": note["bytes"], "sha256": note["sha256"], "first_token": first}
            first += note["bytes"] // item
            for group in note["groups"]:
                here = groups.setdefault((group["source"], group["language"]), dict.fromkeys(_COUNTS, 0))
                for count in _COUNTS:
                    here[count] += group[count]
                most_repeats = max(most_repeats, group["most_repeats"])
        documents = sum(group["documents"] for group in groups.values())
        self._join_index(documents)
        for column in COLUMNS:
            path = self.work / f"{column}.npy"
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        said = read_json(self.folder / SOURCES) if (self.folder / SOURCES).exists() else {}
        manifest = {
            **request,
            "dtype": self.dtype,
            "vocab_size": self.tokenizer.vocab_size,
            "documents": documents,
            "tokens": first,
            "most_repeats": most_repeats,
            "languages": list(self.languages),
            "sources": {name: {**_SOURCE, **_said(said.get(name, {}))} for name in self.sources},
            "groups": [{"source": s, "language": lang, **counts} for (s, lang), counts in groups.items()],
            "files": files,
        }
        for path in [*self.work.glob("[0-9]*.npz"), *self.work.glob("[0-9]*.json"), self.work / REQUEST]:
            path.unlink()
        write_json(self.work / MANIFEST, manifest)

    def _join_index(self, documents: int) -> None:
        arrays = {
            column: np.lib.format.open_memmap(
                self.work / f"{column}.npy", "w+", dtype=dtype, shape=(documents + (column == "offsets"),)
            )
            for column, dtype in COLUMNS.items()
        }
        arrays["offsets"][0] = place = total = 0
        for number in range(len(self.notes)):
            with np.load(self.work / f"{number:05}.npz") as parts:
                count = len(parts["rows"])
                for column, array in arrays.items():
                    if column == "offsets":  # lengths until now
                        ends = total + np.cumsum(parts[column])
                        array[place + 1 : place + count + 1] = ends
                        total = int(ends[-1])
                    else:
                        array[place : place + count] = parts[column]
                place += count
        for array in arrays.values():
            array.flush()


_COUNTS = ("documents", "tokens", "repeated_tokens", "bytes")


def _said(source: dict[str, Any]) -> dict[str, Any]:
    return {key: source[key] for key in _SOURCE if source.get(key) is not None}


def _numbers(names: list[str], known: dict[str, int]) -> np.ndarray:
    """Names by their place among those that are known, which grow."""
    return np.array([known.setdefault(name, len(known)) for name in names])


def _groups(
    parts: dict[str, np.ndarray], sizes: np.ndarray, languages: list[str], sources: list[str]
) -> list[dict[str, Any]]:
    """What a shard has of each source and language."""
    key = parts["sources"].astype(np.int64) * len(languages) + parts["languages"]
    pairs, of = np.unique(key, return_inverse=True)
    lengths, repeats = parts["offsets"], parts["repeats"].astype(np.int64)
    counted = (np.ones_like(lengths), lengths, lengths * repeats, sizes)
    sums = {name: np.bincount(of, weights=each).astype(np.int64) for name, each in zip(_COUNTS, counted, strict=True)}
    return [
        {
            "source": sources[pair // len(languages)],
            "language": languages[pair % len(languages)],
            **{name: int(values[index]) for name, values in sums.items()},
            "most_repeats": int(repeats[of == index].max()),
        }
        for index, pair in enumerate(pairs.tolist())
    ]
