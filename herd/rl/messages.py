"""What trainer and workers say to each other, as bytes: MessagePack, groups as the journal has them. Weights are one
run of bytes, which both sides can map into their memory, and a list of what is where."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from torch import Tensor

from herd.errors import HerdError
from herd.rl.draw import Drawer, EngineFailed, Failure, InvalidGroup
from herd.rl.journal import Admitted
from herd.rl.record import Group
from herd.rl.record_bytes import array_bytes, check_arrays, decode_group

ALIGNMENT = 64
"""Of each tensor's first byte."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is in the run of bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True)
class Load:
    """To a worker: draw by the weights that were written."""

    version: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Reply:
    """From a worker."""

    kind: Literal["drawn", "group", "digest", "failure", "invalid", "error", "crash"]
    to: int | None
    """The ordinal of the group; None: to the weights, or to the start."""
    data: bytes = b""
    """The group, or text."""

    @property
    def text(self) -> str:
        return self.data.decode()

    def raised(self) -> Exception:
        """The error that a worker has met, as it was there."""
        kinds = {"failure": Failure, "invalid": InvalidGroup, "error": HerdError}
        return kinds.get(self.kind, RuntimeError)(self.text)


def reply_of(error: Exception, to: int | None) -> Reply:
    """What is said of an error."""
    match error:
        case InvalidGroup():
            return Reply("invalid", to, str(error).encode())
        case Failure():
            return Reply("failure", to, str(error).encode())
        case HerdError():
            return Reply("error", to, str(error).encode())
    return Reply("crash", to, "".join(traceback.format_exception(error)).encode())


async def draw_for(drawer: Drawer, admitted: Admitted, say: Callable[[Reply], None]) -> None:
    """Draw a group and say what came of it. Raises EngineFailed: such an engine is of no use any more."""
    to = admitted.ordinal
    try:
        group = await drawer.draw(admitted, lambda: say(Reply("drawn", to)))
        say(Reply("group", to, group_bytes(group)))
    except EngineFailed:
        raise
    except Exception as error:
        say(reply_of(error, to))


def load_for(drawer: Drawer, order: Load, data: Tensor) -> Reply:
    """Load weights, and what is said of it."""
    try:
        digest = drawer.engine.update_weights(order.version, unpack(order.places, data))
    except Exception as error:
        return reply_of(error, None)
    return Reply("digest", None, digest.encode())


def group_bytes(group: Group) -> bytes:
    check_arrays(group)
    return msgspec.msgpack.encode(group, enc_hook=array_bytes)


def group_of(data: bytes) -> Group:
    return decode_group(msgspec.msgpack.decode(data))


def places_of(tensors: Mapping[str, Tensor]) -> tuple[tuple[Place, ...], int]:
    """Where tensors go one behind the other, and the bytes of all."""
    places, end = [], 0
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        places.append(Place(name=name, dtype=dtype, shape=tuple(tensor.shape), begin=end))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return tuple(places), end


def unpack(places: tuple[Place, ...], data_B: Tensor) -> dict[str, Tensor]:
    """Views of a run of bytes as tensors."""
    tensors = {}
    for place in places:
        dtype = getattr(torch, place.dtype)
        size = dtype.itemsize * torch.Size(place.shape).numel()
        tensors[place.name] = data_B[place.begin : place.begin + size].view(dtype).view(place.shape)
    return tensors


def write(tensors: Mapping[str, Tensor], data_B: Tensor) -> tuple[Place, ...]:
    """Copy tensors into a run of bytes that has room for them."""
    places, num_bytes = places_of(tensors)
    assert num_bytes <= len(data_B), f"weights of {num_bytes} bytes for a room of {len(data_B)}"
    for name, room in unpack(places, data_B).items():
        room.copy_(tensors[name].detach())
    return places
