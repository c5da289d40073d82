"""The floating-point types that weights are stored in, with the names and numbers that each format has for them."""

from typing import NamedTuple

import torch


class Float(NamedTuple):
    """One type."""

    dtype: torch.dtype
    stored: str
    """Its name in safetensors and GGUF."""
    ggml: int
    """Its number in a GGUF (ggml.h, ggml_type)."""
    gguf_file: int
    """The number of a whole GGUF of it: `general.file_type` (llama.h, llama_ftype)."""


FLOATS = {
    "float32": Float(torch.float32, "F32", ggml=0, gguf_file=0),
    "float16": Float(torch.float16, "F16", ggml=1, gguf_file=1),
    "bfloat16": Float(torch.bfloat16, "BF16", ggml=30, gguf_file=32),
}
"""By their names in settings, in config.json and in PyTorch."""


def dtype_of(name: str | None) -> torch.dtype | None:
    """The type of that name; None for none."""
    return FLOATS[name].dtype if name else None


def float_of(dtype: torch.dtype) -> Float:
    """The entry of a type."""
    return FLOATS[str(dtype).removeprefix("torch.")]
