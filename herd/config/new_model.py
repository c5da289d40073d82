"""The `[model]` table of a recipe: the shape of a new model, as a preset and what differs from it."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from herd.config.model import ModelConfig
from herd.config.presets import PresetName, preset
from herd.config.ranges import Checked, Context, Count, Positive, Seed, Share
from herd.errors import HerdError

MOE = {"num_experts": "num_experts", "top_k": "top_k", "expert_ffn_dim": "ffn_dim", "moe_every": "every"}
"""Fields of `NewModelConfig` → those of MoEConfig."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Checked):
    """The vision encoder. A field that is not given is the preset's."""

    image_size: Count | None = None
    """Side of a tile in pixels."""
    patch_size: Count | None = None
    """Side of a patch in pixels."""
    dim: Count | None = None
    """Width of the encoder."""
    num_layers: Count | None = None
    """Layers of the encoder."""
    num_heads: Count | None = None
    """Attention heads of each of its layers."""
    adapter_dim: Count | None = None
    """Width of the adapter after the pixel shuffle."""
    max_tiles: Count | None = None
    """Most tiles that one picture is cut into, the global tile aside."""


@dataclass(frozen=True, kw_only=True)
class NewModelConfig(Checked):
    """The shape and the first weights of a new model. A field of the shape that is not given is the preset's."""

    preset: PresetName = "tiny"
    """Shape to begin with; `herd plan PRESET` shows its size."""
    seed: Seed = 0
    """Of the first weights."""
    qk_init_correlation: Share = 0.0
    """Correlation of the first query weights of global layers with their key weights: finding in a long text begins
    sooner."""
    text_only: bool = False
    """Leave the preset's vision encoder out."""
    dim: Count | None = None
    """Width of the hidden states."""
    num_layers: Count | None = None
    """Transformer layers."""
    num_heads: Count | None = None
    """Query heads of each layer."""
    num_kv_heads: Count | None = None
    """Heads of keys and values of each layer."""
    head_dim: Count | None = None
    """Width of a head."""
    dense_ffn_dim: Count | None = None
    """Hidden width of the feed-forward in layers without experts."""
    num_experts: Count | None = None
    """Routed experts of each MoE layer, beside one shared expert."""
    top_k: Count | None = None
    """Experts that a token is routed to."""
    expert_ffn_dim: Count | None = None
    """Hidden width of every expert, the shared one included."""
    moe_every: Count | None = None
    """1: every layer has experts, as in Scout; 2: every second one, as in Maverick."""
    nope_every: Count | None = None
    """Every so-many-th layer is global and without positions; more than `num_layers`: none is."""
    chunk_size: Context | None = None
    """Attention chunk of the other layers, in tokens."""
    qk_norm: bool | None = None
    """Whether layers with RoPE normalise queries and keys."""
    temperature_tuning: bool | None = None
    """Whether global layers scale their queries with the position."""
    temperature_floor: Count | None = None
    """Tokens after which that scale begins to grow."""
    temperature_scale: Positive | None = None
    """How fast it grows, with the logarithm of the position."""
    rope_theta: Positive | None = None
    """Base of the rotary frequencies."""
    max_positions: Context | None = None
    """Longest context that the model claims, in tokens."""
    vision: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shape(preset(self.preset))  # what does not fit together is refused here

    def shape(self, base: ModelConfig) -> ModelConfig:
        """The preset's shape `base` with the fields that are given."""
        given = _given(self)
        encoder = _given(self.vision)
        if encoder and (self.text_only or base.vision is None):
            why = "text_only=True" if self.text_only else f"preset={self.preset}"
            raise HerdError(f"vision.{min(encoder)}={encoder[min(encoder)]}: {why} has no vision encoder")
        text = {name for name in given if name in {one.name for one in fields(ModelConfig)} - {"vision"}}
        return replace(
            base,
            moe=replace(base.moe, **{MOE[name]: given[name] for name in MOE if name in given}),
            vision=None if self.text_only or base.vision is None else replace(base.vision, **encoder),
            **{name: given[name] for name in text},
        )


def _given(config: EncoderConfig | NewModelConfig) -> dict[str, Any]:
    """The fields that are not left to the preset."""
    values = {one.name: getattr(config, one.name) for one in fields(config)}
    return {name: value for name, value in values.items() if value is not None}
