"""The device that a command computes on: the one place that chooses it and reports what it cannot do.

`--device` of a command is `HERD_DEVICE` for it and its child processes. It is no part of a stage's config: a run may go
on on another device. Under torchrun a rank takes the card of its LOCAL_RANK. `auto` is the CUDA card where there is
one, else the CPU; mps (Apple's GPU) has to be asked for. What a device lacks is an error: nothing is computed on the
CPU instead.

Positions, document starts and loss weights stay on the host (see herd.core.batch): what a forward is planned by is
known there, and the device is not asked for it.

Imports torch inside its functions: the command line reads the names.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from herd.core.ranks import world
from herd.errors import HerdError, unknown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
NAMES = ("auto", "cpu", "cuda", "mps")
VARIABLE = "HERD_DEVICE"


def choose_device(asked: "str | torch.device | None" = None) -> "torch.device":
    """The device to compute on: `asked`, else what HERD_DEVICE names, else auto. Raises HerdError for one that this
    machine does not have."""
    import torch

    name = str(asked or os.environ.get(VARIABLE) or "auto")
    kind, _, index = name.partition(":")
    if kind not in NAMES or (index and not index.isdecimal()):
        raise unknown("device", name, NAMES)
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        return torch.device("cuda", cuda_index(name, int(index) if index else None))
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise HerdError(f"device={name}: this machine or this build of PyTorch has no Metal: use cpu")
        if world() > 1:
            raise HerdError(f"device={name} works in one process, {world()} were started: use cpu")
    return torch.device(kind)


def cuda_index(name: str, asked: int | None) -> int:
    """The card: the one asked for, else that of this rank on its machine."""
    import torch

    if not torch.cuda.is_available():
        build = "no CUDA card" if torch.version.cuda else "PyTorch was built without CUDA"
        raise HerdError(f"device={name}: no CUDA device ({build}): use cpu")
    count = torch.cuda.device_count()
    index = int(os.environ.get("LOCAL_RANK", "0")) if asked is None else asked
    if index >= count:
        if asked is None:
            raise HerdError(f"LOCAL_RANK={index} has no card, this machine has {count}: start {count} ranks on it")
        raise HerdError(f"device={name}: this machine has {count} CUDA cards, numbered from 0")
    return index


def send(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """A host tensor on `device`; itself where it is there. To a card it goes through pinned memory, so that the host
    does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor if tensor.device == device else tensor.to(device)


def pinned_like(tensor: "Tensor") -> "Tensor":
    """Host memory for a copy of `tensor`, pinned where it comes from a card; on a CPU plain memory."""
    import torch

    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")


def has_fp64(device: "torch.device") -> bool:
    """Whether it computes in double precision; where not, the few places that do have another form."""
    return device.type != "mps"


def sum_dtype(device: "torch.device") -> "torch.dtype":
    """That of sums that are recorded: fp64 where there is one."""
    import torch

    return torch.float64 if has_fp64(device) else torch.float32


ASKED = re.compile(r"(?:tried to allocate|you tried to allocate) ([\d.]+ ?\w+)", re.IGNORECASE)
FREE = re.compile(r"of which ([\d.]+ ?\w+) is free", re.IGNORECASE)
WHERE = re.compile(r"GPU (\d+)")


def out_of_memory(error: BaseException) -> str | None:
    """Where memory ran out, what was asked for and what was free; None if `error` is of another kind."""
    text = str(error)
    if "CUDA out of memory" in text:
        device = f"cuda:{found[1]}" if (found := WHERE.search(text)) else "cuda"
    elif "MPS backend out of memory" in text:
        device = "mps"
    elif "DefaultCPUAllocator: can't allocate memory" in text:
        device = "cpu"
    else:
        return None
    facts = [f"{found[1]} {what}" for what, pattern in (("were asked for", ASKED), ("are free", FREE))
             if (found := pattern.search(text))]  # fmt: skip
    return f"out of memory on {device}" + (f" ({', '.join(facts)})" if facts else "")


@contextmanager
def naming_out_of_memory(advice: str) -> Iterator[None]:
    """Within, running out of memory is a HerdError that ends with `advice`: what to lower."""
    try:
        yield
    except RuntimeError as error:
        if (what := out_of_memory(error)) is None:
            raise
        raise HerdError(f"{what}: {advice}") from error
