"""What benches measure: the shapes of random models, and batches of random documents."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Generator, Tensor, randint

from herd.config import ModelConfig, MoEConfig, SpecialIds
from herd.core.batch import Batch
from herd.data.loading.pack import Sample, pack

S = ModelConfig(
    vocab_size=16_384,
    special=SpecialIds(bos=0, end_of_text=1, eom=2, eot=3, pad=4),
    dim=384,
    num_layers=8,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    dense_ffn_dim=1536,
    moe=MoEConfig(num_experts=8, ffn_dim=768, every=2),
    vision=None,
)
"""54.7 M parameters, 23.6 M of them active."""
SHAPES = {
    "S": S,
    "S16": replace(S, moe=MoEConfig(num_experts=16, ffn_dim=768)),
    "S128": replace(S, moe=MoEConfig(num_experts=128, ffn_dim=768, every=2), qk_norm=False),
    "M": replace(
        S,
        dim=1024,
        num_layers=12,
        num_heads=16,
        num_kv_heads=4,
        dense_ffn_dim=4096,
        moe=MoEConfig(num_experts=8, ffn_dim=2048, every=2),
    ),
}
"""S16 has Scout's experts, S128 Maverick's; M has 480 M parameters, 199 M of them active."""


def random_tokens(vocab_size: int, count: int, seed: int) -> Tensor:
    """int64 [count]."""
    return randint(0, vocab_size, (count,), generator=Generator().manual_seed(seed))


def pack_documents(tokens: Tensor, lengths: Sequence[int]) -> Batch:
    """Tokens as documents of `lengths`, all learnt but the first of each."""
    parts = np.split(tokens.flatten().numpy(), np.cumsum(lengths)[:-1])
    return pack([Sample(ids=ids, learnt=np.ones(len(ids)), kind="text") for ids in parts], patch_id=None)
