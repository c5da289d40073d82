"""Scaled RoPE as GGUF keeps it: a divisor for each rotary frequency, back to the rule that made it.

llama.cpp divides every frequency by `rope.scaling.factor` (linear) and by the tensor `rope_freqs.weight`, which its
converter fills by Llama 3's rule. Source: llama.cpp's llama-model.cpp and conversion/llama.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from herd.config import ModelConfig, RopeScaling
from herd.errors import HerdError
from herd.model.attention import rope_frequencies

ORIGINALS = (8192, *(2**power for power in range(8, 18) if power != 13))
"""Original contexts that are tried, the released one first."""
BOUNDS = ((1.0, 4.0), (1.0, 1.0), (1.0, 2.0))
"""`low_freq_factor` and `high_freq_factor` that are tried: Llama 3's, Scout's."""


def linear(factor: float) -> RopeScaling:
    """Every frequency divided by `factor`: Llama 3's rule with bounds beyond the shortest wavelength."""
    return RopeScaling(factor=factor, low_freq_factor=8192.0, high_freq_factor=8192.0, original_max_positions=8192)


def linear_divisor(metadata: Mapping[str, Any], architecture: str, *, where: str) -> float:
    """By what a GGUF divides all frequencies alike; 1 for none. Other kinds of scaling are refused."""

    def value(key: str) -> Any:
        return metadata.get(f"{architecture}.rope.{key}")

    kind = value("scaling.type") or "linear"  # llama.cpp's default
    if kind not in {"none", "linear"}:
        raise HerdError(
            f"{where}: RoPE scaling of type {kind!r} has no place in the Llama 4 layout, only 'linear' and Llama 3's"
        )
    if (value("scaling.attn_factor") or 1.0) != 1.0:
        raise HerdError(
            f"{where}: {architecture}.rope.scaling.attn_factor={value('scaling.attn_factor')} is not supported"
        )
    factor = value("scaling.factor") or value("scale_linear") or 1.0
    return 1.0 if kind == "none" else float(factor)


def scaling_of(divisors: Tensor, config: ModelConfig, *, where: str) -> RopeScaling | None:
    """The rule that divides the frequencies of `config` by `divisors` [C / 2]; None where all are 1.

    Raises HerdError where no rule that is tried gives them back.
    """
    plain = rope_frequencies(config, scaled=False)
    if divisors.shape != plain.shape:
        raise HerdError(f"{where}: rope_freqs.weight has shape {list(divisors.shape)}, not {list(plain.shape)}")
    largest = round(float(divisors.max()), 4)
    tried: list[RopeScaling | None] = [None, linear(largest)]
    tried += [
        RopeScaling(factor=largest, low_freq_factor=low, high_freq_factor=high, original_max_positions=original)
        for original in ORIGINALS
        for low, high in BOUNDS
    ]
    for scaling in tried:
        if torch.allclose(plain / rope_frequencies(replace(config, rope_scaling=scaling)), divisors.float(), rtol=1e-3):
            return scaling
    raise HerdError(f"{where}: rope_freqs.weight is no scaling of Llama 3's kind")
