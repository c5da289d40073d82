"""Tensors in files, found without reading them: name, type, shape and place of each. Then read one by one.

Plain reads into memory of the tensor's own: nothing of the file stays mapped, so that a model takes its weights' bytes
and little more while it loads. A header is believed in nothing: lengths and offsets are held against the file's size
before memory is taken. Nothing in a file is run: a pickle may name tensors and containers, and nothing else.

Sources: the safetensors format (8 bytes of length, JSON, data); torch.save's zip archive, whose tensors are found by
loading it with fake ones (torch.load's `_checkpoint_offset`).
"""

import codecs
import io
import json
import pickle
import zipfile
from dataclasses import dataclass, replace
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from herd.errors import HerdError
from herd.model.formats.floats import FLOATS

SAFETENSORS_TYPES = {
    "F64": torch.float64,
    **{one.stored: one.dtype for one in FLOATS.values()},
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file; the library's own limit."""
CHECKED = (torch.float64, *(one.dtype for one in FLOATS.values()))
"""Types whose values must be finite."""


Box = tuple[tuple[int, int], ...]
"""Begin and end along each dimension of a part of a tensor."""
SHORT_BYTES = 4096
"""Parts of rows shorter than this are read with their rows, as the disk reads them anyway."""
AT_ONCE_BYTES = 16 * 2**20
"""Such rows that are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a file, row by row from byte `start`."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def num_values(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_values * self.dtype.itemsize

    def at(self, index: int) -> "Stored":
        """One slice along the first axis."""
        start = self.start + index * (self.num_bytes // self.shape[0])
        return replace(self, name=f"{self.name}[{index}]", shape=self.shape[1:], start=start)

    def read(self, out: Tensor | None = None) -> Tensor:
        """The tensor, in `out` (contiguous, of its type and shape) or in new memory.

        Raises HerdError where values are not finite or the file ends too early.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype) if out is None else out
        assert tensor.is_contiguous() and tensor.shape == self.shape and tensor.dtype == self.dtype
        return self.read_box(tuple((0, size) for size in self.shape), tensor)

    def read_box(self, box: Box, out: Tensor) -> Tensor:
        """A part of the tensor in `out`, of its type and the part's shape. What is between is not read, but for rows
        of which little is left out."""
        with self.path.open("rb", buffering=0) as file:
            self._fill(file, out, self.start, self.shape, box)
        return self._checked(out)

    def _fill(self, file: FileIO, out: Tensor, start: int, shape: tuple[int, ...], box: Box) -> None:
        """Read the part `box` of a tensor of `shape` that begins at byte `start`."""
        if not out.numel():
            return
        if not shape or all(span == (0, size) for span, size in zip(box[1:], shape[1:], strict=True)):
            first = box[0][0] * prod(shape[1:]) * self.dtype.itemsize if shape else 0
            if out.is_contiguous():
                self._read_into(file, out, start + first)
            else:
                whole = torch.empty(out.shape, dtype=out.dtype)
                self._read_into(file, whole, start + first)
                out.copy_(whole)
            return
        (begin, end), row = box[0], prod(shape[1:]) * self.dtype.itemsize
        if out[0].numel() * self.dtype.itemsize >= SHORT_BYTES:
            for index in range(begin, end):
                self._fill(file, out[index - begin], start + index * row, shape[1:], box[1:])
            return
        inner = tuple(slice(*span) for span in box[1:])
        at_once = max(1, AT_ONCE_BYTES // row)
        for index in range(begin, end, at_once):
            rows = torch.empty(min(at_once, end - index), *shape[1:], dtype=self.dtype)
            self._read_into(file, rows, start + index * row)
            out[index - begin : index - begin + len(rows)] = rows[(slice(None), *inner)]

    def _read_into(self, file: FileIO, out: Tensor, start: int) -> None:
        """Read contiguous memory from byte `start` on."""
        buffer: Any = out.reshape(-1).view(torch.uint8).numpy()
        file.seek(start)
        done = 0
        while done < len(buffer):  # one call gives 2 GiB at most
            if not (count := file.readinto(buffer[done:])):
                raise HerdError(f"{self.path} ends inside {self.name}: copy it again, whole")
            done += count

    def _checked(self, tensor: Tensor) -> Tensor:
        if tensor.dtype in CHECKED and tensor.numel() and not is_finite(tensor):
            raise HerdError(
                f"{self.path}: {self.name} holds values that are not finite (NaN or infinity): "
                "the file is damaged, or its training went astray; take an earlier copy"
            )
        return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; in one pass and without a copy."""
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_inside(stored: Stored, size: int) -> Stored:
    """`stored`, if it is inside its file of `size` bytes."""
    if any(n < 0 for n in stored.shape) or stored.start < 0 or stored.start + stored.num_bytes > size:
        raise HerdError(
            f"{stored.path} is damaged: {stored.name} {list(stored.shape)} would end at byte "
            f"{stored.start + stored.num_bytes} of {size}; copy it again, whole"
        )
    return stored


def open_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name."""
    size = file_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise HerdError(
                f"{path} is damaged: its header of {length} bytes does not fit in {size}; copy it again, whole"
            )
        raw = file.read(length)
    found = {}
    try:
        for name, entry in json.loads(raw).items():
            if name == "__metadata__":
                continue
            begin, end = map(int, entry["data_offsets"])
            dtype, shape = SAFETENSORS_TYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
            stored = check_inside(
                Stored(path=path, name=name, dtype=dtype, shape=shape, start=8 + length + begin), size
            )
            if begin < 0 or end - begin != stored.num_bytes:
                raise ValueError(f"{name} {list(shape)} does not fill bytes {begin} to {end}")
            found[name] = stored
    except HerdError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HerdError(
            f"{path} is damaged: its header is not of safetensors ({reason}); copy it again, whole"
        ) from None
    return found


def open_pth(path: Path) -> dict[str, Stored]:
    """The tensors of a state dict that torch.save wrote, by name. Entries that are no tensors are left out."""
    size = file_size(path)
    if not zipfile.is_zipfile(path):
        raise HerdError(f"{path} is no whole archive of torch.save (1.6 or newer): copy it again, whole")
    try:
        if any(info.compress_type != zipfile.ZIP_STORED for info in zipfile.ZipFile(path).infolist()):
            raise HerdError(f"{path} is compressed, which torch.save never does: it is not opened")
        # What Meta's own loader allows too: the released files have empty buffers beside the tensors.
        with torch.serialization.safe_globals([io.BytesIO, codecs.encode]), FakeTensorMode():
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except HerdError:
        raise
    except pickle.UnpicklingError:
        raise HerdError(
            f"{path} holds more than tensors and is not opened: what is pickled in it could run code"
        ) from None
    except (
        RuntimeError,
        ValueError,
        KeyError,
        AttributeError,
        EOFError,
        OSError,
        TypeError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HerdError(f"{path} is damaged ({reason}): copy it again, whole") from None
    if not isinstance(state, dict):
        raise HerdError(f"{path} holds a {type(state).__name__}, not the named tensors of a model")
    return {
        name: archive_entry(path, str(name), fake, size) for name, fake in state.items() if isinstance(fake, FakeTensor)
    }


def archive_entry(path: Path, name: str, fake: Tensor, size: int) -> Stored:
    """Where a tensor is in an archive."""
    if not fake.is_contiguous():
        raise HerdError(f"{path}: {name} is not contiguous (strides {fake.stride()}): save it again with .contiguous()")
    begin: Any = fake.untyped_storage()._checkpoint_offset
    start = int(begin + fake.storage_offset() * fake.dtype.itemsize)
    return check_inside(Stored(path=path, name=name, dtype=fake.dtype, shape=tuple(fake.shape), start=start), size)


def file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise HerdError(f"{path} is missing: copy the folder again, whole") from None
