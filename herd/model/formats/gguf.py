"""Reading GGUF, llama.cpp's file: its metadata and its tensors as fp32 arrays. Version 2 and 3, little-endian.

The header is believed in nothing: every length, count and offset is held against the size of the file before memory is
taken for it. Quantised types are dequantised by the package `gguf`, llama.cpp's own (the extra `gguf`); plain
floats and the simplest blocks (Q4_0, Q4_1, Q8_0) need no package. Source: ggml's docs/gguf.md and ggml-quants.c.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from herd.errors import HerdError
from herd.model.formats.floats import FLOATS

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""ggml's number of a metadata type → struct's letter."""
STRING, ARRAY = 8, 9
LEAST_BYTES = {STRING: 8, ARRAY: 12} | {kind: struct.calcsize(letter) for kind, letter in SCALARS.items()}
"""What one value of a type takes at least: bounds a count by the bytes that are left."""
F32, F16, BF16 = (FLOATS[name].ggml for name in ("float32", "float16", "bfloat16"))
PLAIN_BYTES = {one.ggml: one.dtype.itemsize for one in FLOATS.values()}
Q4_0, Q4_1, Q8_0 = 2, 3, 8
SIMPLE_BYTES = {Q4_0: 18, Q4_1: 20, Q8_0: 34}
"""Bytes of a block of 32 weights."""
MAX_DIMS, MAX_DEPTH = 4, 4


PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""The end of the name of one file of several, as llama.cpp's gguf-split writes it."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor's line in the header; `shape` has the rows first, as in PyTorch."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    num_bytes: int

    def numbers(self, begin: int = 0, end: int | None = None) -> np.ndarray:
        """The tensor in fp32, or its slices from `begin` to `end` along the first axis.

        Raises HerdError where a value is not finite.
        """
        count = self.shape[0] if self.shape else 1
        end = count if end is None else end
        one = self.num_bytes // max(count, 1)
        with self.path.open("rb") as file:
            file.seek(self.start + begin * one)
            raw = np.fromfile(file, np.uint8, (end - begin) * one)
        array = numbers(raw, self, (end - begin, *self.shape[1:]) if self.shape else ())
        if not np.isfinite(array).all():
            raise HerdError(f"{self.path}: {self.name} holds values that are not finite: take another copy")
        return array


def read_gguf(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, np.ndarray]]]:
    """Metadata, and name and fp32 array of each tensor in the file's order, rows first as in PyTorch.

    One tensor is in memory at a time. Raises HerdError where the file is no GGUF, is cut off, is inconsistent, or
    holds values that are not finite.
    """
    metadata, entries = read_header(path)
    return metadata, ((entry.name, entry.numbers()) for entry in entries)


def read_header(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    """Metadata and the tensors' entries, which are checked to be inside their file; of a split model, those of all
    files."""
    if (found := PART.search(path.name)) is None:
        return read_one_header(path)
    stem, count = path.name[: found.start()], int(found[2])
    parts = [path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise HerdError(f"{path.parent}: {', '.join(missing[:4])} missing of {count} files: copy it again, whole")
    headers = [read_one_header(part) for part in parts]
    entries = [entry for _, held in headers for entry in held]
    if len({entry.name for entry in entries}) < len(entries):
        raise HerdError(f"{path} and its other parts name a tensor twice: take another copy")
    return headers[0][0], entries


def read_one_header(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    """`read_header` of a single file."""
    try:
        with path.open("rb") as file:
            return Header(file, path).read()
    except (FileNotFoundError, IsADirectoryError):
        raise HerdError(f"{path} is not a file: give the path of a .gguf file") from None


def uniform(metadata: Mapping[str, Any], key: str, *, where: str) -> Any:
    """A value that GGUF may give once or for each layer; None where it is missing.

    Raises HerdError where layers differ: the Llama 4 layout has one for all.
    """
    value = metadata.get(key)
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise HerdError(f"{where}: {key}={value} differs between layers, the Llama 4 layout has one value for all")
    return value[0]


class Header:
    """A cursor that does not go past the end."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self.file, self.path, self.size = file, path, path.stat().st_size

    def read(self) -> tuple[dict[str, Any], list[Entry]]:
        if self.file.read(4) != b"GGUF":
            raise HerdError(f"{self.path} is not a GGUF file")
        if (version := self.scalar("I")) not in {2, 3}:
            raise HerdError(f"{self.path}: GGUF version {version} is not read, only 2 and 3 (little-endian)")
        num_tensors, num_values = self.scalar("Q"), self.scalar("Q")
        self.room(num_tensors * 24 + num_values * 13, f"{num_tensors} tensors and {num_values} values")
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = self.text()
            metadata[key] = self.value(self.scalar("I"), key)
        entries = [self.entry() for _ in range(num_tensors)]
        if len({entry[0] for entry in entries}) < len(entries):
            raise HerdError(f"{self.path} names a tensor twice: take another copy")
        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align <= 0:
            raise HerdError(f"{self.path}: general.alignment={align} is not a number of bytes")
        start = (self.file.tell() + align - 1) // align * align
        return metadata, [self.entry_at(start, *entry) for entry in entries]

    def room(self, num_bytes: int, what: str) -> None:
        """Refuse what needs more bytes than are left."""
        left = self.size - self.file.tell()
        if num_bytes > left:
            raise HerdError(f"{self.path} is damaged: {what} would need {num_bytes} bytes, {left} are left in the file")

    def scalar(self, letter: str) -> Any:
        size = struct.calcsize(letter)
        self.room(size, "a number")
        return struct.unpack(f"<{letter}", self.file.read(size))[0]

    def text(self) -> str:
        length = self.scalar("Q")
        self.room(length, "a string")
        return self.file.read(length).decode(errors="replace")

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind != ARRAY or depth > MAX_DEPTH:
            raise HerdError(f"{self.path}: {key} has the type {kind}, which GGUF does not know")
        inner, count = self.scalar("I"), self.scalar("Q")
        self.room(count * LEAST_BYTES.get(inner, 1), f"{count} values of {key}")
        if inner in SCALARS:
            return list(struct.unpack(f"<{count}{SCALARS[inner]}", self.file.read(count * LEAST_BYTES[inner])))
        return [self.value(inner, key, depth + 1) for _ in range(count)]

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dims = self.text(), self.scalar("I")
        if dims > MAX_DIMS:
            raise HerdError(f"{self.path} is damaged: {name} has {dims} dimensions, at most {MAX_DIMS} are possible")
        shape = tuple(self.scalar("Q") for _ in range(dims))[::-1]
        return name, shape, self.scalar("I"), self.scalar("Q")

    def entry_at(self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Entry:
        per_block, block_bytes = (1, PLAIN_BYTES[kind]) if kind in PLAIN_BYTES else block_size(kind, name, self.path)
        if shape and shape[-1] % per_block:
            raise HerdError(
                f"{self.path}: rows of {name} have {shape[-1]} weights, no multiple of a block's {per_block}"
            )
        num_bytes = prod(shape) // per_block * block_bytes
        if start + offset + num_bytes > self.size:
            raise HerdError(f"{self.path} ends inside {name}: copy it again, whole")
        return Entry(path=self.path, name=name, shape=shape, kind=kind, start=start + offset, num_bytes=num_bytes)


def block_size(kind: int, name: str, path: Path) -> tuple[int, int]:
    """Weights in a block of a quantised type, and its bytes."""
    if kind in SIMPLE_BYTES:
        return 32, SIMPLE_BYTES[kind]
    sizes: dict[int, tuple[int, int]] = package("constants").GGML_QUANT_SIZES
    if kind not in sizes:
        raise HerdError(f"{path}: {name} has the type {kind} of ggml, which is not read")
    return sizes[kind]


def numbers(raw: np.ndarray, entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes of a tensor, or of some of its slices, as fp32 of `shape`."""
    if entry.kind == F32:
        return raw.view("<f4").reshape(shape)
    if entry.kind == F16:
        return raw.view("<f2").astype(np.float32).reshape(shape)
    if entry.kind == BF16:
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if entry.kind in SIMPLE_BYTES:
        return simple(raw.reshape(-1, SIMPLE_BYTES[entry.kind]), entry.kind).reshape(shape)
    types = package("constants").GGMLQuantizationType
    try:
        flat: np.ndarray = package("quants").dequantize(raw.reshape(*shape[:-1], -1), types(entry.kind))
    except NotImplementedError:
        raise HerdError(f"{entry.name} has the type {types(entry.kind).name} of ggml, which is not read") from None
    return flat.reshape(shape).astype(np.float32, copy=False)


def simple(blocks: np.ndarray, kind: int) -> np.ndarray:
    """Blocks [n, bytes] as fp32 [n, 32]: an fp16 scale, with Q4_1 the least value, then the integers."""
    scale, least = (blocks[:, at : at + 2].copy().view("<f2").astype(np.float32) for at in (0, 2))
    if kind == Q8_0:
        return scale * blocks[:, 2:].view(np.int8)
    halves = blocks[:, 4 if kind == Q4_1 else 2 :]
    nibbles = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32)
    return scale * nibbles + least if kind == Q4_1 else scale * (nibbles - 8)


def package(module: str) -> Any:
    """A module of the package `gguf`."""
    try:
        return import_module(f"gguf.{module}")
    except ImportError:
        raise HerdError("GGUF needs the package gguf: pip install 'herd-lm[gguf]'") from None
