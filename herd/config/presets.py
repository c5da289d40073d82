"""Shapes by name: the tiny herd, the released models, and small versions of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from herd.config.model import ModelConfig, MoEConfig, RopeScaling, SpecialIds, VisionConfig
from herd.errors import unknown

TINY_VOCAB = 8192
"""Tokens of the tokenizer that `herd data build` trains unless asked for another number."""


def tiny_ids(vocab_size: int) -> SpecialIds:
    """The ids that such a tokenizer gives to the special tokens: its last 21, in Llama 4's order."""
    first = vocab_size - 21
    return SpecialIds(
        bos=first,
        end_of_text=first + 1,
        eom=first + 7,
        eot=first + 8,
        pad=first + 12,
        image_start=first + 13,
        image_end=first + 14,
        patch=first + 18,
    )


def tiny(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """The shape that two cores raise in minutes: iRoPE 3 + 1, 8 experts in every layer, tiles of 64 px."""
    return ModelConfig(
        vocab_size=vocab_size,
        special=special,
        dim=192,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        dense_ffn_dim=768,
        moe=MoEConfig(num_experts=8, ffn_dim=384),
        vision=VisionConfig(
            image_size=64, patch_size=16, dim=128, num_layers=4, num_heads=4, adapter_dim=256, max_tiles=4
        ),
        chunk_size=256,
        temperature_floor=256,
        max_positions=4096,
    )


RELEASED_VOCAB = 202_048
"""Tokens of the released models: 200,000 of BPE and 2,048 special ones."""
RELEASED_IDS = SpecialIds(
    bos=200_000,
    end_of_text=200_001,
    eom=200_007,
    eot=200_008,
    pad=200_018,
    image_start=200_080,
    image_end=200_081,
    patch=200_092,
)
RELEASED_VISION = VisionConfig(image_size=336, patch_size=14, dim=1408, num_layers=34, num_heads=16, adapter_dim=4096)


def scout(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """Llama 4 Scout: 108.64 B parameters, of which a text token uses 17.17 B. Source: its params.json."""
    return ModelConfig(
        vocab_size=vocab_size,
        special=special,
        dim=5120,
        num_layers=48,
        num_heads=40,
        num_kv_heads=8,
        head_dim=128,
        dense_ffn_dim=16_384,
        moe=MoEConfig(num_experts=16, ffn_dim=8192),
        vision=RELEASED_VISION,
        rope_scaling=RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=8192),
        max_positions=10_485_760,
    )


def maverick(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """Llama 4 Maverick: 401.58 B parameters, of which a text token uses 17.18 B. Source: its params.json."""
    return replace(
        scout(vocab_size, special),
        moe=MoEConfig(num_experts=128, ffn_dim=8192, every=2),
        qk_norm=False,
        rope_scaling=None,
        max_positions=1_048_576,
    )


def behemoth(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """A shape of our own with what was published of Llama 4 Behemoth: 16 experts, 288 B active, about 2 T in all.

    Its width, depth and all else are unpublished. A mixture in every layer, as in Scout: 287.98 B and 1.97 T.
    """
    return replace(
        scout(vocab_size, special),
        dim=14_336,
        num_layers=124,
        num_heads=112,
        num_kv_heads=16,
        dense_ffn_dim=41_984,
        moe=MoEConfig(num_experts=16, ffn_dim=20_992),
        rope_scaling=None,
        max_positions=262_144,
    )


def tiny_scout(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """A small Scout: a mixture of 16 in every layer, QK norm, scaled RoPE; chunks of 256 and a claim of 1280 chunks."""
    return replace(
        tiny(vocab_size, special),
        dim=256,
        moe=MoEConfig(num_experts=16, ffn_dim=384),
        rope_scaling=RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=256),
        max_positions=327_680,
    )


def tiny_maverick(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """A small Maverick: a mixture of 128 in every second layer, no QK norm, plain RoPE; a claim of 128 chunks."""
    return replace(
        tiny(vocab_size, special),
        dim=256,
        moe=MoEConfig(num_experts=128, ffn_dim=384, every=2),
        qk_norm=False,
        max_positions=32_768,
    )


def tiny_behemoth(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """A small Behemoth: 16 experts as in tiny-scout, twice its depth and width; a claim of 32 chunks."""
    return replace(
        tiny(vocab_size, special),
        dim=512,
        num_layers=8,
        num_heads=8,
        dense_ffn_dim=2048,
        moe=MoEConfig(num_experts=16, ffn_dim=1024),
        max_positions=8192,
    )


def tiny_long(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """One local layer under a global one, of text alone: what it costs to read a token does not grow with the context.

    The queries' temperature must grow at least as the logarithm of the context does: its
    slope is thrice Llama 4's, from 256 tokens on.
    """
    return replace(
        tiny(vocab_size, special),
        dim=128,
        num_layers=2,
        nope_every=2,
        moe=MoEConfig(num_experts=4, ffn_dim=256),
        vision=None,
        chunk_size=1024,
        temperature_scale=0.3,
        max_positions=11_534_336,
    )


PresetName = Literal[
    "tiny", "scout", "maverick", "behemoth", "tiny-scout", "tiny-maverick", "tiny-behemoth", "tiny-long"
]
PRESETS: dict[str, Callable[[int, SpecialIds], ModelConfig]] = {
    "tiny": tiny,
    "scout": scout,
    "maverick": maverick,
    "behemoth": behemoth,
    "tiny-scout": tiny_scout,
    "tiny-maverick": tiny_maverick,
    "tiny-behemoth": tiny_behemoth,
    "tiny-long": tiny_long,
}


def preset(name: str, *, vocab_size: int | None = None, special: SpecialIds | None = None) -> ModelConfig:
    """The model shape called `name`, for a tokenizer of `vocab_size` tokens with the ids `special`.

    By default the tokenizer is the one that such a model is made with: the released one of 202,048 tokens, for the tiny
    shapes that of 8,192 which the tiny recipe trains.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    small = name.startswith("tiny")
    size = vocab_size or (TINY_VOCAB if small else RELEASED_VOCAB)
    return PRESETS[name](size, special or (tiny_ids(size) if small else RELEASED_IDS))
