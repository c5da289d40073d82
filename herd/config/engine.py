"""What an engine may take: requests, context, memory. The options of `herd serve`, `chat` and `generate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from herd.errors import HerdError

DEFAULT_MAX_MODEL_LEN = 8192
"""Tokens of a request, where nothing is set and the model allows more."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Options of an engine; names are vLLM's where vLLM has the option."""

    max_num_seqs: int = 8
    """Answers that are generated at a time."""
    max_model_len: int | None = None
    """Tokens of a request at most, prompt and answer: 8K, 10M; the model's context, 8,192 at most, if not given."""
    max_prefill_tokens: int = 2048
    """Tokens of prompts that a step reads at most."""
    max_mixed_prefill_tokens: int = 512
    """The same for a step that also decodes, so that running answers do not wait long."""
    num_speculative_tokens: int = 0
    """Tokens drafted ahead at most; changes no answer in fp32, in bf16 one at a near tie."""
    kv_cache_memory_bytes: int | None = None
    """Bytes for keys and values, such as 4G; room for all requests if not given. Memory is used as they fill it."""
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    """int8: keys and values of global layers in 8 bits; auto: in the model's precision."""
    kv_cache_folder: Path | None = None
    """Keep the keys and values of global layers in a file in this folder, for contexts beyond memory."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_model_len", "max_prefill_tokens", "max_mixed_prefill_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HerdError(f"{name}={value} must be at least 1")
        if self.kv_cache_memory_bytes is not None and self.kv_cache_memory_bytes < 1:
            raise HerdError(f"kv_cache_memory_bytes={self.kv_cache_memory_bytes} must be at least 1")
        if self.num_speculative_tokens < 0:
            raise HerdError(f"num_speculative_tokens={self.num_speculative_tokens} must not be negative")
        if self.kv_cache_dtype not in ("auto", "int8"):
            raise HerdError(f"kv_cache_dtype={self.kv_cache_dtype!r} must be auto or int8")
