"""Groups as bytes and back, and how a journal frames them: length, crc32, payload."""

import mmap
import struct
import zlib
from typing import Any

import numpy as np

from herd.rl.record import Group, Rollout, Span

_PREFIX = struct.Struct("<II")
PREFIX_BYTES = _PREFIX.size
ARRAYS = {
    "prompt": np.dtype("<u4"),
    "ids": np.dtype("<u4"),
    "drawn": np.dtype("?"),
    "logprobs": np.dtype("<f4"),
}
"""The number format of each array of a rollout, which is not written: a record has the bytes alone. `routes`, where
there are any, are bytes."""


def check_arrays(group: Group) -> None:
    """Assert that the arrays of all rollouts have the number formats in which they will be read."""
    for rollout in group.rollouts:
        for name, dtype in ARRAYS.items():
            found = vars(rollout)[name].dtype
            assert found == dtype, f"{name} of a rollout is {found}, not {dtype}"
        if rollout.routes is not None:
            assert rollout.routes.dtype == np.uint8 and len(rollout.routes) == len(rollout.prompt) + len(rollout.ids)


def array_bytes(value: Any) -> bytes:
    """What MessagePack writes for an array."""
    assert isinstance(value, np.ndarray), f"a journal has no {type(value)}"
    return value.tobytes()


def decode_group(raw: dict[str, Any]) -> Group:
    """The group whose fields MessagePack has read. Its arrays cannot be written to."""
    return Group(**raw | {"rollouts": tuple(map(_rollout, raw["rollouts"]))})


def _rollout(raw: dict[str, Any]) -> Rollout:
    arrays = {name: np.frombuffer(raw[name], dtype) for name, dtype in ARRAYS.items()}
    if raw.get("routes") is not None:  # journals of before have no such field
        num_tokens = len(arrays["prompt"]) + len(arrays["ids"])
        arrays["routes"] = np.frombuffer(raw["routes"], np.uint8).reshape(num_tokens, -1)
    return Rollout(**raw | arrays | {"spans": tuple(Span(**span) for span in raw["spans"])})


def frame(payload: bytes) -> bytes:
    """A record: length and crc32 of the payload, 4 bytes each, little-endian, and the payload."""
    return _PREFIX.pack(len(payload), zlib.crc32(payload)) + payload


def payload_at(data: bytes | mmap.mmap, at: int) -> bytes | None:
    """The payload of the record that begins at `at`, if it is whole."""
    begin = at + PREFIX_BYTES
    if begin > len(data):
        return None
    length, crc = _PREFIX.unpack_from(data, at)
    # An empty payload has crc 0: zeros, as a disk that lost its power may leave them, are no record.
    if length == 0 or begin + length > len(data):
        return None
    payload = data[begin : begin + length]
    return payload if zlib.crc32(payload) == crc else None


def next_whole(data: mmap.mmap, begin: int, *, kinds: bytes) -> int | None:
    """Where the first whole record from `begin` on begins; any byte may be its first, as a broken length leads nowhere.
    `kinds`: what payloads begin with."""
    for at in range(begin, len(data) - PREFIX_BYTES):
        if data[at + PREFIX_BYTES] in kinds and payload_at(data, at) is not None:
            return at
    return None
