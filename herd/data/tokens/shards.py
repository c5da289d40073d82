"""Token shards: the documents of a data folder as memory-mapped token ids, with an index that is read without them.

    tokens/train-00000.bin …   ids of the documents, end to end: begin-of-text, text, end-of-text; little-endian
    tokens/offsets.npy         int64 [documents + 1], where each document begins, counted in tokens over all files
    tokens/languages.npy       uint16, index into the manifest's `languages`
    tokens/sources.npy         uint16, index into the manifest's `sources`
    tokens/repeats.npy         uint16, how often a document is trained on in an epoch
    tokens/rows.npy            int64, its row in text.parquet
    tokens/manifest.json       tokenizer, what was read, sizes and sha256 of the files, counts, weights, licences

Documents that are held out are not in it. Sizes are checked when shards are opened, hashes by `verify`. Where those
of a tokenizer are: herd.data.tokens.shard_folders. How they are written: herd.data.tokens.shard_writer.
"""

import hashlib
import json
from bisect import bisect_right
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from herd.core.files import read_json, sha256
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError

FORMAT = 1
MANIFEST = "manifest.json"
COLUMNS = {"offsets": "int64", "languages": "uint16", "sources": "uint16", "repeats": "uint16", "rows": "int64"}
"""The arrays of the index."""
FOLDERS = {"text": "tokens", "books": "book-tokens"}
"""Tables of a data folder that have shards, and where."""
RELEASE_BYTES = 2**27
"""So much is read before the maps of the files are closed: pages that were read count as memory of this process."""
FOOTER_BYTES = 2**16
"""The end of a Parquet file that tells it from others: sizes, places and statistics of its columns."""


class TokenShards:
    """The documents of a folder of shards. Raises HerdError where a file is missing or has another size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = read_json(path / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise self._broken(
                f"{path / MANIFEST} has format {self.manifest.get('format')}, this version reads {FORMAT}"
            )
        for name, file in self.manifest["files"].items():
            there = path / name
            if not there.exists():
                raise self._broken(f"{there} is missing")
            if (size := there.stat().st_size) != file["bytes"]:
                raise self._broken(f"{there} has {size:,} bytes instead of {file['bytes']:,}")
        self.dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        self.languages: list[str] = self.manifest["languages"]
        self.sources: list[str] = list(self.manifest["sources"])
        self._names = [name for name in self.manifest["files"] if name.endswith(".bin")]
        self._begins = [self.manifest["files"][name]["first_token"] for name in self._names]
        self._maps: dict[int, np.ndarray] = {}
        self._read_bytes = 0

    def __len__(self) -> int:
        return int(self.manifest["documents"])

    @property
    def num_tokens(self) -> int:
        return int(self.manifest["tokens"])

    @property
    def has_repeats(self) -> bool:
        """Whether any document is trained on more than once in an epoch."""
        return bool(self.manifest["most_repeats"] > 1)

    @property
    def offsets(self) -> np.ndarray:
        """int64 [documents + 1], where each document begins."""
        return self.column("offsets")

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {}

    def column(self, name: str) -> np.ndarray:
        """An array of the index, memory-mapped."""
        if name not in self._columns:
            # A plain array over the map: a slice of a memmap takes ten times as long.
            self._columns[name] = np.asarray(np.load(self.path / f"{name}.npy", mmap_mode="r"))
        return self._columns[name]

    def lengths(self, documents: np.ndarray) -> np.ndarray:
        """int64, tokens of each document."""
        return self.offsets[documents + 1] - self.offsets[documents]

    def tokens(self, document: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Tokens `begin` to `end` of a document, a slice of the mapped file."""
        first, last = int(self.offsets[document]), int(self.offsets[document + 1])
        shard = bisect_right(self._begins, first) - 1
        begin, end = first + begin, last if end is None else min(first + end, last)
        self._read_bytes += (end - begin) * self.dtype.itemsize
        if self._read_bytes > RELEASE_BYTES:
            self._maps, self._read_bytes = {}, 0
        maps = self._maps  # another thread may release them meanwhile
        if shard not in maps:
            maps[shard] = np.asarray(np.memmap(self.path / self._names[shard], dtype=self.dtype, mode="r"))
        return maps[shard][begin - self._begins[shard] : end - self._begins[shard]]

    def verify(self) -> None:
        """Read every file and compare its sha256 with the manifest's."""
        for name, file in self.manifest["files"].items():
            if sha256(self.path / name) != file["sha256"]:
                raise self._broken(f"{self.path / name} was changed: its sha256 is not that of {MANIFEST}")

    def _broken(self, what: str) -> HerdError:
        return HerdError(f"{what}: remove {self.path} and re-run, the tokens are then written again")


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """16 hex digits of what the ids of a document depend on."""
    document = tokenizer.document
    parts = {key: document[key] for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    own = {**parts, "bos": tokenizer.ids.bos, "end_of_text": tokenizer.ids.end_of_text}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]


def table_hash(path: Path) -> str:
    """16 hex digits that tell a Parquet file from others, from its size and its end: its pages are not read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - FOOTER_BYTES))
        return hashlib.sha256(str(size).encode() + file.read()).hexdigest()[:16]


def open_table(folder: Path, table: str, columns: list[str]) -> parquet.ParquetFile:
    """A table of a data folder, to be read by batches of rows; its columns are read in pieces too."""
    path = folder / f"{table}.parquet"
    if not path.exists():
        raise HerdError(f"{path} is missing: write the data folder again with `herd data build --out {folder}`")
    file = parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    if missing := [column for column in columns if column not in file.schema_arrow.names]:
        raise HerdError(f"{path} lacks the column {', '.join(missing)}: it needs {', '.join(columns)}")
    return file
