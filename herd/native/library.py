"""Builds the kernels with the machine's own C++ compiler at first use, and calls them.

The library is kept in the cache (`herd.core.files.cache_folder`) under a name made of source, compiler and
processor: whatever changes, another one is built, in about a minute. Where there is no compiler, or the processor lacks
AVX2 too, `why_not()` is the reason, and PyTorch's own operators serve.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from herd.core.files import cache_folder

SOURCES = (
    "attention.cpp",
    "forward.cpp",
    "lowbit.cpp",
    "optimizer.cpp",
    "paged.cpp",
    "products.cpp",
    "rows.cpp",
    "sparse.cpp",
)
HEADERS = ("common.h", "matrices.h", "pages.h", "schemes.h", "wide.h")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-fno-strict-aliasing", "-fno-math-errno")
INSTRUCTIONS = {
    "AVX-512 with VNNI": ("avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    "AVX2": ("avx2", "fma"),
}
"""What the processor must have, in the words of /proc/cpuinfo, the best first. For AVX2, wide.h makes registers of 512
bits of pairs."""
SWITCH = "HERD_NATIVE"
"""Set this variable to 0 to do without the kernels."""


class Found(NamedTuple):
    """The loaded library, or why there is none and what to do."""

    library: ctypes.CDLL | None
    reason: str
    fix: str


@lru_cache(maxsize=1)
def find() -> Found:
    """Load the library, built if need be; once in a process."""
    if os.environ.get(SWITCH) == "0":
        return Found(None, f"{SWITCH}=0", f"unset {SWITCH}")
    flags = processor_flags()
    best = instructions(flags)
    if best is None:
        lacking = [name for name in INSTRUCTIONS["AVX2"] if name not in flags]
        return Found(None, f"the processor lacks {', '.join(lacking)}", "")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        return Found(None, "no C++ compiler", "apt-get install g++")
    try:
        return Found(ctypes.CDLL(str(build(compiler, flags))), "", "")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or str(error)).splitlines()[-1]
        return Found(None, f"{compiler} fails: {last}", "apt-get install g++ (12 or newer)")
    except OSError as error:
        return Found(None, str(error), "set HERD_CACHE to a folder of yours that may hold programs")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a kernel takes."""

    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)
    multiple: int = 1
    """What the width of the last axis is a multiple of."""
    training: bool = False
    """Whether it is for training: where PyTorch multiplies bf16 fast it is not used without gradients, as for a few
    tokens at a time the packing of the weights would not pay."""


BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""What a processor has that multiplies bf16 faster than fp32. Without one a training step in bf16 takes 1.5 times as
long as in fp32, without the C++ kernels four times; PyTorch's products in bf16 reach a tenth of those in fp32."""
BF16, FLOATS = Inputs(), Inputs(dtypes=(torch.bfloat16, torch.float32))


def why_not(x: Tensor | None = None, inputs: Inputs = BF16) -> str | None:
    """Why a kernel for `inputs` cannot be used on `x`, or without `x` on this machine; None where it can."""
    if (found := find()).library is None or x is None:
        return found.reason or None
    if x.device.type != "cpu":
        return f"the tensor is on {x.device}"
    if x.dtype not in inputs.dtypes:
        return f"the tensor is {x.dtype}"
    if inputs.multiple > 1 and x.shape[-1] % inputs.multiple:
        return f"the width {x.shape[-1]} is not a multiple of {inputs.multiple}"
    if inputs.training and not torch.is_grad_enabled() and multiplies_bf16():
        return "no gradients are recorded"
    return None


def instructions(flags: frozenset[str]) -> str | None:
    """The best of INSTRUCTIONS that a processor with `flags` has; None if it has none."""
    return next((name for name, needed in INSTRUCTIONS.items() if flags.issuperset(needed)), None)


def multiplies_bf16() -> bool:
    """Whether the processor multiplies bf16 faster than fp32."""
    return bool(BF16_FLAGS & processor_flags())


@lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """What the processor can do, in Linux's words; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def build(compiler: str, flags: frozenset[str]) -> Path:
    """The library's path; compiled to another name first and renamed, so that two processes may build at a time."""
    here = Path(__file__).parent
    version = run([compiler, "--version"])
    digest = hashlib.sha256(repr((compiler, version, FLAGS, sorted(flags))).encode())
    for name in (*HEADERS, *SOURCES):
        digest.update((here / name).read_bytes())
    path = cache_folder() / "native" / f"kernels-{digest.hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as folder, ThreadPoolExecutor() as pool:
            objects = [str(Path(folder) / f"{name}.o") for name in SOURCES]
            commands = [
                [compiler, *FLAGS, "-c", str(here / name), "-o", object_]
                for name, object_ in zip(SOURCES, objects, strict=True)
            ]
            list(pool.map(run, commands))
            made = Path(folder) / path.name
            run([compiler, *FLAGS, "-shared", *objects, "-o", str(made)])
            os.replace(made, path)
    return path


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel. Tensors go as their first element's address and must be contiguous, None as a null pointer."""
    library = find().library
    assert library is not None
    function = library[name]
    function.restype = None
    function(*map(as_c, arguments))


def as_c(argument: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)
