"""Reading GGUF, llama.cpp's file: its metadata and its tensors, dequantised. Version 2 and 3, little-endian.

Source: ggml's docs/gguf.md and ggml-quants.c. Types other than those in `DEQUANTISERS` are refused by name.
"""

import mmap
import struct
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from herd.core.errors import HerdError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def _bf16(raw: np.ndarray) -> np.ndarray:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _nibbles(block: np.ndarray) -> np.ndarray:
    """16 bytes to 32 numbers: the low halves, then the high ones."""
    return np.concatenate([block & 15, block >> 4], axis=1).astype(np.float32)


def _scales(block: np.ndarray, count: int) -> list[np.ndarray]:
    return [block[:, 2 * i : 2 * i + 2].copy().view("<f2").astype(np.float32) for i in range(count)]


def _q8_0(block: np.ndarray) -> np.ndarray:
    [scale] = _scales(block, 1)
    return scale * block[:, 2:].view(np.int8)


def _q4_0(block: np.ndarray) -> np.ndarray:
    [scale] = _scales(block, 1)
    return scale * (_nibbles(block[:, 2:]) - 8)


def _q4_1(block: np.ndarray) -> np.ndarray:
    scale, least = _scales(block, 2)
    return scale * _nibbles(block[:, 4:]) + least


DEQUANTISERS: dict[int, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: (1, 4, lambda raw: raw.view("<f4")),
    1: (1, 2, lambda raw: raw.view("<f2").astype(np.float32)),
    2: (32, 18, _q4_0),
    3: (32, 20, _q4_1),
    8: (32, 34, _q8_0),
    30: (1, 2, _bf16),
}
"""By ggml's number of the type: weights in a block, bytes of it, and blocks [n, bytes] to fp32."""


def read_gguf(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, np.ndarray]]]:
    """Metadata, and name and fp32 array of each tensor in the file's order, rows first as in PyTorch.

    Raises HerdError where the file is no GGUF, ends too early or holds a type that is not read.
    """
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _parse(data, path)
    except FileNotFoundError:
        raise HerdError(f"{path} does not exist") from None
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, HerdError):
            raise
        raise HerdError(f"{path} is no whole GGUF file ({error}): copy it again") from None


def _parse(data: memoryview, path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, np.ndarray]]]:
    at = 0

    def take(form: str) -> Any:
        nonlocal at
        [value] = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return value

    def text() -> str:
        nonlocal at
        length = take("Q")
        if at + length > len(data):
            raise IndexError("it ends inside a string")
        at += length
        return bytes(data[at - length : at]).decode(errors="replace")

    def value(kind: int) -> Any:
        if kind == STRING:
            return text()
        if kind == ARRAY:
            inner, count = take("I"), take("Q")
            return [value(inner) for _ in range(count)]
        return take(SCALARS[kind]) if kind in SCALARS else _refuse(f"{path}: unknown type {kind} in the metadata")

    if bytes(data[:4]) != b"GGUF":
        _refuse(f"{path} is not a GGUF file")
    at = 4
    if (version := take("I")) not in {2, 3}:
        _refuse(f"{path}: GGUF version {version} is not read, only 2 and 3")
    num_tensors, num_values = take("Q"), take("Q")
    metadata = {text(): value(take("I")) for _ in range(num_values)}
    infos = []
    for _ in range(num_tensors):
        name = text()
        shape = tuple(take("Q") for _ in range(take("I")))[::-1]
        kind, offset = take("I"), take("Q")
        if kind not in DEQUANTISERS:
            _refuse(f"{path}: {name} has the type {kind} of ggml, which is not read")
        infos.append((name, shape, kind, offset))
    align = metadata.get("general.alignment", 32)
    start = (at + align - 1) // align * align
    for name, shape, kind, offset in infos:
        per_block, size, _ = DEQUANTISERS[kind]
        if start + offset + prod(shape) // per_block * size > len(data):
            _refuse(f"{path} ends inside {name}: copy it again, whole")

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, shape, kind, offset in infos:
            per_block, size, dequantise = DEQUANTISERS[kind]
            raw = np.frombuffer(data, np.uint8, prod(shape) // per_block * size, start + offset)
            yield name, dequantise(raw.reshape(-1, size) if per_block > 1 else raw).reshape(shape)

    return metadata, tensors()


def _refuse(reason: str) -> Any:
    raise HerdError(reason)
