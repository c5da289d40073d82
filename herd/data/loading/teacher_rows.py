"""A teacher's rows on disk: of each position that it was asked about, K ids drawn from its softmax, the log-probability
of the text's token and the entropy. Memory-mapped; no torch.

    rows-00000.bin …     one record a row: draws (uint16, or 3 bytes where the vocabulary is larger), float16, float16
    text.npy             int64, of each document of the token shards its first row; -1 where it was not read
    picture-keys.npy     uint64 ascending, see `PretrainBatches.shown_key`
    picture-rows.npy     int64, the first row of each
    teacher.json         what the rows were made of, sizes and sha256 of the files

Rows are found by document and position, so that a student with other batches reads the same. A row of a document is
that of a position and its next token, from the first to the one before the last; those of a picture are the positions
whose next token is learnt.
"""

# R rows, K draws of a row

from pathlib import Path
from typing import Any

import numpy as np

from herd.core.files import read_json, sha256, sync
from herd.errors import HerdError

FORMAT = 1
MANIFEST = "teacher.json"
TEXT, KEYS, PICTURES = INDEX = ("text.npy", "picture-keys.npy", "picture-rows.npy")
ROWS_A_FILE = 2**24
SMALL_VOCAB = 2**16
"""Ids below it take two bytes, others three."""


def row_dtype(vocab_size: int, num_draws: int) -> np.dtype[Any]:
    """One record."""
    draws = ("<u2", (num_draws,)) if vocab_size <= SMALL_VOCAB else ("u1", (num_draws, 3))
    return np.dtype([("draws", *draws), ("logprob", "<f2"), ("entropy", "<f2")])


def pack_rows(draws_RK: np.ndarray, logprobs_R: np.ndarray, entropies_R: np.ndarray, vocab_size: int) -> np.ndarray:
    """Records of what a teacher gives."""
    rows_R = np.zeros(len(draws_RK), dtype=row_dtype(vocab_size, draws_RK.shape[1]))
    if vocab_size <= SMALL_VOCAB:
        rows_R["draws"] = draws_RK
    else:
        rows_R["draws"] = draws_RK.astype("<u4")[..., None].view("u1")[..., :3]
    rows_R["logprob"], rows_R["entropy"] = logprobs_R, entropies_R
    return rows_R


def draws_of(rows_R: np.ndarray) -> np.ndarray:
    """int64 [R, K]."""
    draws = rows_R["draws"]
    if draws.ndim == 2:
        return draws.astype(np.int64)
    return draws.astype(np.int64) @ np.array([1, 2**8, 2**16])


def uniforms(seed: int, first_row: int, num_rows: int, num_draws: int) -> np.ndarray:
    """float64 [R, K] in [0, 1): what the draws of rows are made from, a function of the seed and the row's number."""
    blocks = -(-num_draws // 4)  # the generator makes four numbers at a time
    bits = np.random.Philox(key=seed)
    bits.advance(first_row * blocks)
    return np.random.Generator(bits).random((num_rows, 4 * blocks))[:, :num_draws]


class RowFiles:
    """The files of rows while they are written: each row has its place from the beginning, whoever writes it."""

    def __init__(self, folder: Path, num_rows: int, dtype: np.dtype[Any]) -> None:
        self.folder, self.num_rows, self.dtype = folder, num_rows, dtype

    def make(self) -> None:
        """Give every file its size; what is there stays."""
        for number in range(-(-self.num_rows // ROWS_A_FILE)):
            rows = min(ROWS_A_FILE, self.num_rows - number * ROWS_A_FILE)
            with (self.folder / file_name(number)).open("ab") as file:
                file.truncate(rows * self.dtype.itemsize)

    def write(self, first_row: int, rows_R: np.ndarray) -> None:
        """Write consecutive rows."""
        while len(rows_R):
            number, place = divmod(first_row, ROWS_A_FILE)
            part = rows_R[: ROWS_A_FILE - place]
            with (self.folder / file_name(number)).open("r+b") as file:
                file.seek(place * self.dtype.itemsize)
                file.write(part.tobytes())
            first_row, rows_R = first_row + len(part), rows_R[len(part) :]

    def sync(self) -> None:
        """Force what was written to the disk."""
        for name in self.names:
            sync(self.folder / name)

    @property
    def names(self) -> list[str]:
        """Of the files."""
        return [file_name(number) for number in range(-(-self.num_rows // ROWS_A_FILE))]


def file_name(number: int) -> str:
    return f"rows-{number:05d}.bin"


class TeacherFolder:
    """The rows of a finished folder. Raises HerdError where a file is missing or was cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = read_json(path / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise HerdError(f"{path / MANIFEST} has format {self.manifest.get('format')}, this version reads {FORMAT}")
        for name, file in self.manifest["files"].items():
            size = (path / name).stat().st_size if (path / name).exists() else None
            if size != file["bytes"]:
                found = "is missing" if size is None else f"has {size:,} bytes instead of {file['bytes']:,}"
                raise HerdError(f"{path / name} {found}: copy it again, or write {path} again with herd teach")
        self.num_draws = int(self.manifest["draws"])
        self.dtype = row_dtype(self.manifest["vocab_size"], self.num_draws)
        names = [name for name in self.manifest["files"] if name.endswith(".bin")]
        self._files = [np.asarray(np.memmap(path / name, dtype=self.dtype, mode="r")) for name in names]
        self._text = np.load(path / TEXT, mmap_mode="r")
        self._keys = np.load(path / KEYS, mmap_mode="r")
        self._rows = np.load(path / PICTURES, mmap_mode="r")

    def text(self, document: int, begin: int, count: int) -> np.ndarray | None:
        """The rows of `count` positions of a document from `begin` on; None if it was not read."""
        first = int(self._text[document]) if document < len(self._text) else -1
        return None if first < 0 else self._read(first + begin, count)

    def picture(self, key: int, count: int) -> np.ndarray | None:
        """The rows of a picture's learnt tokens; None if it was not read."""
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        if place == len(self._keys) or int(self._keys[place]) != key:
            return None
        return self._read(int(self._rows[place]), count)

    def _read(self, first_row: int, count: int) -> np.ndarray:
        number, place = divmod(first_row, ROWS_A_FILE)
        rows = self._files[number][place : place + count]
        if len(rows) == count:
            return rows
        return np.concatenate([rows, self._read(first_row + len(rows), count - len(rows))])

    def verify(self) -> None:
        """Read every file and compare its sha256 with the manifest's."""
        for name, file in self.manifest["files"].items():
            if sha256(self.path / name) != file["sha256"]:
                raise HerdError(f"{self.path / name} was changed: its sha256 is not that of {MANIFEST}")
