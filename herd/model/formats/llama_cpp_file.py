"""Llama 4 as GGUF (architecture `llama4`), ours or of llama.cpp's converter, in any type that the package `gguf` reads.

llama.cpp has much of the architecture in its code and not in the file: chunks of 8192, every fourth layer global, the
temperature, QK norm unless there are 128 experts. A file that asks for something else is refused by the key. Weights
are dequantised a few rows, or one expert, at a time, straight into the parameter that they belong to. The
vision encoder is in a file of its own (mmproj), which is not read: the model is one of text.

Source: llama.cpp, src/models/llama4.cpp and conversion/llama4.py.
"""

# E experts, D width, F hidden width

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.config import ModelConfig, MoEConfig, SpecialIds
from herd.data.tokens import formats as tokenizer_formats
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.model.formats.floats import FLOATS
from herd.model.formats.gguf import Entry, package, read_header, uniform
from herd.model.formats.rope_factors import linear_divisor, scaling_of
from herd.model.formats.weights import Weights, refuse, skeleton, wrong_names

GGML_FLOATS = {one.ggml: one.dtype for one in FLOATS.values()}
FACTORS = "rope_freqs.weight"
ROWS_BYTES = 64_000_000
"""About as many bytes of fp32 are in memory beside the parameter that is read."""


class LlamaCppFile:
    """A GGUF whose header has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata, entries = read_header(path)
        self.entries = {entry.name: entry for entry in entries}
        self.check_architecture()

    def check_architecture(self) -> None:
        """Refuse a file of something else."""
        path, kind = self.path, self.metadata.get("general.architecture")
        if kind == "clip":
            raise HerdError(f"{path} is the vision part of a model (mmproj): name the file of the text model")
        if kind == "llama":
            raise HerdError(
                f"{path} is a dense Llama, not Llama 4: bring it home once with `herd adopt {path.name} FOLDER`"
            )
        if kind != "llama4":
            raise HerdError(f"{path}: architecture {kind!r} is not read, only 'llama4' (and 'llama' by `herd adopt`)")

    @cached_property
    def quantized(self) -> str | None:
        """The names of the file's low-bit types; None where all are floats."""
        kinds = sorted({entry.kind for entry in self.entries.values()} - GGML_FLOATS.keys())
        types = package("constants").GGMLQuantizationType if kinds else None
        return ", ".join(types(kind).name for kind in kinds) if types else None

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are opened in if nothing else is asked for: their own, of low-bit ones bf16."""
        return torch.bfloat16 if self.quantized else GGML_FLOATS[self.entries["token_embd.weight"].kind]

    @cached_property
    def vocabulary(self) -> tuple[Tokenizer, SpecialIds]:
        """The tokenizer in the file and its special ids, those of pictures left out."""
        tokenizer, special = tokenizer_formats.from_gguf(self.metadata, where=str(self.path))
        special = replace(special, image_start=None, image_end=None, patch=None)
        return tokenizer.with_ids(special), special

    @cached_property
    def config(self) -> ModelConfig:
        try:
            return self.read_config()
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise HerdError(f"{self.path} is not a complete Llama 4: {error!r}") from None

    def value(self, key: str) -> Any:
        """A value of the architecture; None where the file has none."""
        return uniform(self.metadata, f"llama4.{key}", where=str(self.path))

    def require(self, key: str) -> Any:
        if (value := self.value(key)) is None:
            raise KeyError(f"llama4.{key}")
        return value

    def read_config(self) -> ModelConfig:
        heads, dim, experts = (
            self.require("attention.head_count"),
            self.require("embedding_length"),
            self.require("expert_count"),
        )
        head_dim = self.value("attention.key_length") or dim // heads
        theta = self.value("rope.freq_base") or 10_000.0
        for key, only in {
            "attention.value_length": head_dim,
            "rope.dimension_count": head_dim,
            "attention.sliding_window_pattern": 4,
            "attention.scale": head_dim**-0.5,
            "rope.freq_base_swa": theta,
            "expert_weights_scale": 1.0,
            "expert_gating_func": 2,  # sigmoid
        }.items():
            value = self.value(key)
            if value and abs(value - only) > 1e-6 * only:
                raise HerdError(f"{self.path}: llama4.{key}={value} is not supported, only {only:g}")
        if self.value("attention.sliding_window") == 0:
            raise HerdError(f"{self.path}: llama4.attention.sliding_window=0 (no chunks) is not supported")
        config = ModelConfig(
            vocab_size=self.entries["token_embd.weight"].shape[0],
            special=self.vocabulary[1],
            dim=dim,
            num_layers=self.require("block_count"),
            num_heads=heads,
            num_kv_heads=self.value("attention.head_count_kv") or heads,
            head_dim=head_dim,
            dense_ffn_dim=self.require("feed_forward_length"),
            moe=MoEConfig(
                num_experts=experts,
                ffn_dim=self.require("expert_feed_forward_length"),
                top_k=self.require("expert_used_count"),
                every=self.require("interleave_moe_layer_step"),
            ),
            vision=None,
            qk_norm=experts != 128,
            rope_theta=theta,
            norm_eps=self.require("attention.layer_norm_rms_epsilon"),
            max_positions=self.require("context_length"),
        )
        divisors = torch.full((head_dim // 2,), linear_divisor(self.metadata, "llama4", where=str(self.path)))
        if FACTORS in self.entries:
            divisors = divisors * torch.from_numpy(self.entries[FACTORS].numbers())
        return replace(config, rope_scaling=scaling_of(divisors, config, where=str(self.path)))

    def places(self) -> dict[str, list[str]]:
        """For every parameter of `Transformer`, the tensors whose rows make it, in their order."""
        table = {
            "embedding.weight": ["token_embd.weight"],
            "norm.weight": ["output_norm.weight"],
            # An output that is the embedding is not stored twice.
            "unembedding.weight": ["output.weight" if "output.weight" in self.entries else "token_embd.weight"],
        }
        for layer in range(self.config.num_layers):
            here, there = f"layers.{layer}", f"blk.{layer}"

            def together(fused: str, *apart: str, there: str = there) -> list[str]:
                """One tensor where the file has them in one, as newer converters can write them."""
                name = f"{there}.{fused}.weight"
                return [name] if name in self.entries else [f"{there}.{one}.weight" for one in apart]

            table |= {
                f"{here}.attention_norm.weight": [f"{there}.attn_norm.weight"],
                f"{here}.attention.qkv.weight": together("attn_qkv", "attn_q", "attn_k", "attn_v"),
                f"{here}.attention.out.weight": [f"{there}.attn_output.weight"],
                f"{here}.ffn_norm.weight": [f"{there}.ffn_norm.weight"],
            }
            inner, tail = f"{here}.ffn", ""
            if self.config.is_moe(layer):
                table |= {
                    f"{inner}.router.weight": [f"{there}.ffn_gate_inp.weight"],
                    f"{inner}.gate_up_EDF": together("ffn_gate_up_exps", "ffn_gate_exps", "ffn_up_exps"),
                    f"{inner}.down_EFD": [f"{there}.ffn_down_exps.weight"],
                }
                inner, tail = f"{inner}.shared", "_shexp"
            table[f"{inner}.gate_up.weight"] = [f"{there}.ffn_{one}{tail}.weight" for one in ("gate", "up")]
            table[f"{inner}.down.weight"] = [f"{there}.ffn_down{tail}.weight"]
        return table

    def weights(self, dtype: torch.dtype | None = None) -> Weights:
        """The weights in `dtype`, None being the file's; names and shapes are checked before any is read."""
        target, table = dtype or self.dtype, self.places()
        shapes = {name: tuple(parameter.shape) for name, parameter in skeleton(self.config).named_parameters()}
        wanted = {place for places in table.values() for place in places}
        problems = wrong_names(self.entries.keys() - {FACTORS}, wanted)
        for name, places in table.items() if not problems else ():
            if (held := stacked_shape([self.entries[place] for place in places])) != (shape := as_rows(shapes[name])):
                problems.append(f"{' + '.join(places)} has shape {held}, the header asks for {shape}")
        refuse(self.path, problems)

        def read(name: str) -> Tensor:
            out = torch.empty(shapes[name], dtype=target)
            rows = out.mT if out.dim() == 3 else out
            begin = 0
            for place in table[name]:
                begin = fill(rows, begin, self.entries[place])
            return out

        return Weights(config=self.config, dtype=target, read=read)


def as_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A parameter's shape with the rows of each expert first, as GGUF has them."""
    return (shape[0], shape[2], shape[1]) if len(shape) == 3 else shape


def stacked_shape(parts: list[Entry]) -> tuple[int, ...]:
    """The shape of tensors whose rows are stacked; of experts, for each."""
    first = parts[0].shape
    axis = len(first) - 2 if len(first) > 1 else 0
    if any(len(part.shape) != len(first) for part in parts):
        return ()
    return (*first[:axis], sum(part.shape[axis] for part in parts), *first[axis + 1 :])


def fill(rows: Tensor, begin: int, entry: Entry) -> int:
    """Write a tensor into `rows` ([…, rows, in]) from the row `begin` on; gives the row after the last."""
    for first, last in slices(entry):
        part = torch.from_numpy(entry.numbers(first, last))
        if rows.dim() == 3:
            rows[first:last, begin : begin + part.shape[1]] = part.to(rows.dtype)
        else:
            rows[begin + first : begin + last] = part.to(rows.dtype)
    return begin + entry.shape[-2 if len(entry.shape) > 1 else 0]


def slices(entry: Entry) -> Iterator[tuple[int, int]]:
    """Ranges along the first axis, of about ROWS_BYTES in fp32 each."""
    count = entry.shape[0]
    whole = torch.Size(entry.shape).numel() * 4
    step = max(1, ROWS_BYTES * count // max(whole, 1))
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)
