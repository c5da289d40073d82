"""The shape of a model."""

from dataclasses import dataclass
from math import gcd

from herd.errors import HerdError

PAGE_TOKENS = 64
"""Most tokens in a page of keys and values."""


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Routed experts beside one shared expert."""

    num_experts: int
    ffn_dim: int
    """Hidden width of every routed expert and of the shared one."""
    top_k: int = 1
    """Experts a token visits."""
    every: int = 1
    """1: all layers are mixtures (Scout); 2: every second one, the others are dense (Maverick)."""

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise HerdError(f"top_k={self.top_k} is not between 1 and num_experts={self.num_experts}")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3-type scaling of the rotary frequencies; Scout uses factor 16, low = high = 1, original 8192."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The encoder of one square tile, and how its patches become tokens of the text model."""

    image_size: int
    """Side of a tile in pixels."""
    patch_size: int
    dim: int
    num_layers: int
    num_heads: int
    adapter_dim: int
    """Width of the adapter after the pixel shuffle."""
    max_tiles: int = 16
    """Most tiles that one picture is cut into, the global tile aside."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.image_size % (2 * self.patch_size):
            raise HerdError(
                f"image_size={self.image_size} must be a multiple of twice patch_size={self.patch_size}: "
                "the pixel shuffle joins 2 x 2 patches"
            )
        if self.dim % (4 * self.num_heads):
            raise HerdError(f"vision dim={self.dim} is not divisible by 4 x num_heads={self.num_heads}")

    @property
    def mlp_dim(self) -> int:
        # transformers takes the adapter's input width (4 x dim after the shuffle) from `intermediate_size`.
        return 4 * self.dim

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        return (self.grid // 2) ** 2


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Ids of the tokens that the model's folder must name in config.json."""

    bos: int
    end_of_text: int
    eom: int
    eot: int
    pad: int
    image_start: int | None = None
    """This and the following: None in a model of text alone."""
    image_end: int | None = None
    patch: int | None = None

    @property
    def stop(self) -> tuple[int, ...]:
        """Generation ends at any of these, without duplicates."""
        return tuple(dict.fromkeys((self.end_of_text, self.eom, self.eot)))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama 4 transformer: chunked RoPE layers, every `nope_every`-th layer global without positions."""

    vocab_size: int
    special: SpecialIds
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dense_ffn_dim: int
    """Hidden width of the feed-forward in layers that are no mixtures."""
    moe: MoEConfig
    vision: VisionConfig | None
    """None: a model of text alone."""
    nope_every: int = 4
    """Every how many layers one has no positions; more than `num_layers`: all layers have RoPE."""
    chunk_size: int = 8192
    """Positions that a RoPE layer sees at most: the token's own block, `position // chunk_size`."""
    qk_norm: bool = True
    temperature_tuning: bool = True
    """Whether global layers scale queries by 1 + temperature_scale * ln(floor((pos + 1) / temperature_floor) + 1)."""
    temperature_floor: int = 8192
    temperature_scale: float = 0.1
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    max_positions: int = 262_144
    """Context that the folder claims, in tokens."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise HerdError(f"num_heads={self.num_heads} is not divisible by num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise HerdError(f"head_dim={self.head_dim} is odd: RoPE rotates pairs of channels")

    @property
    def page_tokens(self) -> int:
        """Tokens in a page of keys and values: a divisor of the chunk, so that a page ends wherever a chunk does."""
        return gcd(PAGE_TOKENS, self.chunk_size)

    def is_global(self, layer: int) -> bool:
        """Whether the layer attends to the whole past, without positions (NoPE)."""
        return (layer + 1) % self.nope_every == 0

    def is_moe(self, layer: int) -> bool:
        return (layer + 1) % self.moe.every == 0
