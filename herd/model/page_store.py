"""Pages of keys and values in a file, or in 8 bits.

**In a file.** It has no name, is as long as the pages may ever become, and takes room on the disk only as pages are
first used (`grow`): so a full disk raises an error, where writing to a mapped hole would end the process.

**In 8 bits.** Keys have a scale for each channel of a page, as some channels are large in every token; values one for
each token. Source: Liu et al., "KIVI" (2024), whose recent tokens stay wide; here a page that is not full is packed
too, and packed again as tokens come: as long as none is larger than those before, its numbers stay what they are, and
at most they are rounded once more for every time that a channel's scale grows.
"""

# N tokens, C head width, P pages, K key heads, L tokens of a page, U pages that a forward writes to

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from herd.core.device import send
from herd.errors import HerdError

PAGES_AT_ONCE = 16
"""Pages by which the file grows."""
TOP = 127
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
"""Memory of this process alone; what a child would share were counted as the machine's shared memory."""


class PageFile:
    """Memory of tensors [P, …] in a file in `folder`. `folder` None: in memory, and `grow` does nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._tensors: list[tuple[int, int]] = []  # where each begins, bytes of one page
        self._pages = self._grown = self._size = 0
        self._file = None
        if folder is not None:
            try:
                self._file = tempfile.TemporaryFile(dir=folder, prefix="herd-pages-")  # noqa: SIM115
            except OSError as error:
                reason = f"{error.strerror}: give a folder that can be written"
                raise HerdError(f"kv_cache_folder {folder}: {reason}") from None

    def zeros(self, pages: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros [pages, *shape]; memory of the CPU is touched, and the disk filled, when they are first written."""
        if device.type == "cpu" and self._file is None and pages:
            # torch.zeros writes its zeros: an engine took all of its cache's memory, and the time for it, at its start.
            size = pages * math.prod(shape) * dtype.itemsize
            try:
                memory = mmap.mmap(-1, size, **PRIVATE)
            except (OSError, ValueError, OverflowError) as error:
                # As torch says it, for `out_of_memory`.
                asked = f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {size} bytes"
                raise RuntimeError(f"{asked} ({error})") from None
            return torch.frombuffer(memory, dtype=dtype).view(pages, *shape)
        if self._file is None or not pages:
            return torch.zeros(pages, *shape, dtype=dtype, device=device)
        if device.type != "cpu":
            raise HerdError(f"kv_cache_folder is for a model on the CPU, this one is on {device}: leave it out")
        page = math.prod(shape) * dtype.itemsize
        begin = -(-self._size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._size, self._pages = begin + pages * page, pages
        os.ftruncate(self._file.fileno(), self._size)
        self._tensors.append((begin, page))
        memory = mmap.mmap(self._file.fileno(), pages * page, offset=begin)
        return torch.frombuffer(memory, dtype=dtype).view(pages, *shape)

    def grow(self, pages: int) -> None:
        """Room on the disk for the first `pages` pages; OSError where there is none."""
        if self._file is None or pages <= self._grown:
            return
        end = min(self._pages, self._grown + PAGES_AT_ONCE)
        for begin, page in self._tensors:
            os.posix_fallocate(self._file.fileno(), begin + self._grown * page, (end - self._grown) * page)
        self._grown = end


@dataclass(frozen=True, kw_only=True)
class WrittenPages:
    """The pages that a forward writes to; the same for all layers of a pool."""

    page_N: Tensor
    """Of each new token."""
    page_U: Tensor
    """Each once."""
    row_N: Tensor
    """Which of them each new token goes to, …"""
    slot_N: Tensor
    """… and its place there."""
    is_old_UL: Tensor
    """Whether a place holds an older token."""

    @staticmethod
    def of(page_N: Tensor, slot_N: Tensor, page_tokens: int, device: torch.device) -> "WrittenPages":
        """Of the page and the place of each new token, on the host; for use on `device`."""
        page_U, row_N = torch.unique(page_N, return_inverse=True)
        first_U = torch.full_like(page_U, page_tokens).scatter_reduce(0, row_N, slot_N, "amin")
        is_old_UL = torch.arange(page_tokens) < first_U[:, None]
        return WrittenPages(
            page_N=send(page_N, device),
            page_U=send(page_U, device),
            row_N=send(row_N, device),
            slot_N=send(slot_N, device),
            is_old_UL=send(is_old_UL, device),
        )


def store_int8(
    keys_PKLC: Tensor,
    values_PKLC: Tensor,
    key_scale_PKC: Tensor,
    value_scale_PKL: Tensor,
    written: WrittenPages,
    k_NKC: Tensor,
    v_NKC: Tensor,
) -> None:
    """Write new tokens to their pages, packed. Those of one page follow each other, and the older ones before them."""
    page_N, page_U, row_N, slot_N = written.page_N, written.page_U, written.row_N, written.slot_N
    is_old_UL = written.is_old_UL
    scale_NK = to_scale(v_NKC.float().abs().amax(-1))
    value_scale_PKL[page_N, :, slot_N] = scale_NK
    values_PKLC[page_N, :, slot_N] = to_int8(v_NKC.float(), scale_NK[..., None])

    old_scale_UKC = key_scale_PKC[page_U].float() * is_old_UL.any(1)[:, None, None]
    wide_UKLC = keys_PKLC[page_U].float() * old_scale_UKC[:, :, None] * is_old_UL[:, None, :, None]
    new_UKLC = torch.zeros_like(wide_UKLC)
    new_UKLC[row_N, :, slot_N] = k_NKC.float()
    scale_UKC = torch.maximum(old_scale_UKC, to_scale(new_UKLC.abs().amax(2)).float())
    key_scale_PKC[page_U] = scale_UKC.to(key_scale_PKC.dtype)
    keys_PKLC[page_U] = to_int8(wide_UKLC + new_UKLC, scale_UKC[:, :, None])


def to_scale(largest: Tensor) -> Tensor:
    """bf16: what its rounding cuts off the largest number is less than half a step."""
    return (largest / TOP).to(torch.bfloat16)


def to_int8(wide: Tensor, scale: Tensor) -> Tensor:
    scale = scale.float()
    return torch.where(scale > 0, wide / scale, 0).round().clamp(-TOP, TOP).to(torch.int8)
